"""Other programs that score the same images, timed beside the job.

A peer is a command. It is called with `--manifest CSV --model BUNDLE --output DIR
--batch-size N` and writes Parquet of `image_id` and 15 score columns into DIR. The last
line that it prints is JSON with `images` and `score_s`, the seconds from the first image
read to the last byte written, its own start apart. `benchmarks/peers` has some.
"""

import dataclasses
import functools
import json
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.benchmark import Stage
from schemas.errors import InputError
from schemas.findings import FINDINGS, score_column

_COLUMNS = ("image_id", *map(score_column, FINDINGS))


@dataclasses.dataclass(frozen=True)
class PeerJob:
    """What every peer is given.

    Attributes:
      manifest: CSV of `image_id` and absolute `uri`.
      images: Rows of it.
      bundle: Folder of the model bundle.
      batch_size: Images a batch.
      folder: Where each writes into a new folder.
      environment: Variables that it finds set.
    """

    manifest: Path
    images: int
    bundle: str
    batch_size: int
    folder: Path
    environment: Mapping[str, str]


class Peer:
    """One command, called once a repeat.

    Attributes:
      name: Of its program, without the ending.
      facts: What it printed last.
    """

    def __init__(self, command: str):
        """Takes a command without calling it.

        Args:
          command: As in a shell, without what a peer is given.

        Raises:
          InputError: There is no such program.
        """
        self._command = shlex.split(command)
        self._output: Path | None = None
        self.name = Path(self._command[-1]).stem if self._command else "nothing"
        self.facts: dict = {}
        if not self._command or not shutil.which(self._command[0]):
            raise self._refused("no program of that name")

    def stage(self, job: PeerJob) -> Stage:
        """Returns what to measure; calling it raises as `score` does."""
        return Stage(self.name, job.images, functools.partial(self.score, job))

    def score(self, job: PeerJob) -> dict[str, float]:
        """Runs the program; returns the seconds that it says it took.

        Raises:
          InputError: It fails, or does not do what a peer must.
        """
        self._output = Path(tempfile.mkdtemp(dir=job.folder))
        given = ["--manifest", job.manifest, "--model", job.bundle, "--output", self._output]
        command = [*self._command, *map(str, given), "--batch-size", str(job.batch_size)]
        try:
            done = subprocess.run(
                command, env=job.environment, stdout=subprocess.PIPE, text=True, check=True
            )
            self.facts = json.loads(done.stdout.splitlines()[-1])
            images, seconds = self.facts["images"], float(self.facts["score_s"])
        except subprocess.CalledProcessError as error:
            raise self._refused(f"exit code {error.returncode}") from error
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise self._refused("no JSON of images and score_s in its last line") from error
        if images != job.images:
            raise self._refused(f"{images} of {job.images} images")
        return {self.name: seconds}

    def largest_difference(self, scores: Path) -> float:
        """Returns how far a score of its last call lies from the job's, at most.

        Args:
          scores: Folder of the job's scores.

        Raises:
          InputError: It did not write each image once.
        """
        own, other = _read_scores(self._output), _read_scores(scores)
        if own.column("image_id").to_pylist() != other.column("image_id").to_pylist():
            raise self._refused("other images than the manifest's, or some twice")
        return float(np.abs(_matrix(own) - _matrix(other)).max())

    def _refused(self, received: str) -> InputError:
        return InputError(
            "--peer must be a command that scores all images and prints what it took, as"
            f" benchmarks/peers/README.md says. Received from {self.name}: {received}."
        )


def _read_scores(folder: Path) -> pa.Table:
    table = ds.dataset(folder, format="parquet").to_table(columns=list(_COLUMNS))
    return table.sort_by("image_id").combine_chunks()


def _matrix(table: pa.Table) -> np.ndarray:
    return np.stack([table.column(name).to_numpy() for name in _COLUMNS[1:]], axis=1)
