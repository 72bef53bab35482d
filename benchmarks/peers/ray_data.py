"""Ray Data's way: `map` decodes, `map_batches` scores in an actor, `write_parquet` writes.

As the guide "Working with images" advises: tasks for decoding, a class in a pool of
actors for the network. The pool has one actor, since a second copy of the network
would compete for the same cores. It reserves none of them, so that decoding goes on in
a task a core while TensorFlow computes with its own threads. The actor runs the frozen
graph of this project on TensorFlow, folded batch normalisations and all, and not Keras' `predict`:
generous to Ray, so that what differs is the moving of data.

A job of decoding alone runs before the clock starts, so that the workers for it are up.
An actor lives for one job, so the network is loaded, and called on a full batch, within
the job. Ray is told to wait for that before it reads. So it is start-up, and the clock
starts with the first image read.
"""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
import peer
import pyarrow as pa
import ray


class Scorer:
    """The network in an actor."""

    def __init__(self, model: str, batch_size: int):
        self._score = peer.load_frozen(model, batch_size)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns ids and scores for ids and squares."""
        scores = self._score(batch["square"])
        return {"image_id": batch["image_id"], **peer.score_columns(scores)}


def main() -> None:
    """Scores the images of the manifest."""
    job = peer.parse_job(__doc__)
    _start_ray()
    with peer.first_read() as clock:
        _squares(job.warm_up_rows, 1, clock).materialize()
        clock.forget()
        (
            _squares(job.rows, job.batch_size, clock)
            .map_batches(
                Scorer,
                batch_size=job.batch_size,
                compute=ray.data.ActorPoolStrategy(size=1),
                fn_constructor_args=(job.model, job.batch_size),
                # Else Ray fuses the decoding into the actor, where it waits its turn.
                num_cpus=0,
            )
            .write_parquet(job.output)
        )
        peer.report(job, clock.time, ["ray", "tensorflow", "keras"])


def _start_ray() -> None:
    # A benchmark reports to nobody but its caller.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=os.cpu_count(), include_dashboard=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = 600


def _squares(
    rows: Sequence[peer.Row], rows_per_block: int, clock: peer.FirstRead
) -> ray.data.Dataset:
    """Returns the decoded images, a task a block.

    Blocks of a batch each, because Ray makes no batch from parts of two groups of blocks.
    """

    def load(row: dict) -> dict:
        return {"image_id": row["image_id"], "square": peer.load_square(row["uri"], clock)}

    table = pa.Table.from_pylist([dataclasses.asdict(row) for row in rows])
    starts = range(0, len(rows), rows_per_block)
    return ray.data.from_arrow([table.slice(start, rows_per_block) for start in starts]).map(load)


if __name__ == "__main__":
    main()
