"""Scores that a command reads, also those of a run on a store."""

from collections.abc import Iterator
from contextlib import contextmanager

from schemas.errors import InputError


@contextmanager
def local_scores(scores: str | None) -> Iterator[str | None]:
    """Gives a place of scores on this machine; for a run on `gs://` a copy of its scores.

    Args:
      scores: A local file or folder, or `OUTPUT/runs/ID.json`, which may be on `gs://`; None
        is given back.

    Raises:
      InputError: It is on a store and no record of a run.
      OutputError: A store refuses, or does not answer.
    """
    if scores is None or not scores.startswith("gs://"):
        yield scores
        return
    from pipeline.mirror import published_run

    folder, _, name = scores.rpartition("/")
    if folder.endswith("/runs") and name.endswith(".json"):
        with published_run(scores, kinds=("scores",)) as record:
            if record.is_file():
                yield str(record)
                return
    raise InputError(
        "scores on gs:// must be those of a run, OUTPUT/runs/ID.json. Received:"
        f" {scores}, where there is none. `prescreen runs OUTPUT` lists what there is."
    )
