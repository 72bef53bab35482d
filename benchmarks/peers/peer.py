"""What the peer programs share: the command line, the manifest, the clock, the columns.

A peer imports its own libraries itself, so that none pays for those of another.
"""

import argparse
import contextlib
import csv
import dataclasses
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from schemas.contract import STANDARD_CONTRACT
from schemas.findings import FINDINGS, score_column

SIZE = STANDARD_CONTRACT.size
"""Height and width of the network's input, in pixels."""

SCORE_COLUMNS = tuple(score_column(finding) for finding in FINDINGS)
"""In network output order."""

SCHEMA = pa.schema(
    [("image_id", pa.string()), *((column, pa.float32()) for column in SCORE_COLUMNS)]
)
"""Of the Parquet that every peer writes: one row an image."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the manifest.

    Attributes:
      image_id: Unique.
      uri: Absolute local path of a PNG; several ids may share it.
    """

    image_id: str
    uri: str


@dataclasses.dataclass(frozen=True)
class Job:
    """What the command line asks for.

    Attributes:
      rows: Of the manifest, in its order; at least one.
      model: Folder of a bundle.
      output: Folder for Parquet; new or empty.
      batch_size: Images in a call of the network, where the peer has batches.
    """

    rows: tuple[Row, ...]
    model: str
    output: str
    batch_size: int

    @property
    def warm_up_rows(self) -> list[Row]:
        """A full batch, with rows of a short manifest repeated."""
        return [self.rows[number % len(self.rows)] for number in range(self.batch_size)]

    @property
    def network_file(self) -> str:
        """Path of the bundle's Keras model, for loaders that take no bundle."""
        return str(Path(self.model) / "model.keras")


def parse_job(description: str) -> Job:
    """Returns the job on the command line, with the manifest read.

    Args:
      description: The peer's docstring; its first line goes into the help.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--manifest", type=Path, required=True, help="CSV of image_id, uri")
    parser.add_argument("--model", required=True, help="folder of a bundle")
    parser.add_argument("--output", type=Path, required=True, help="new folder for Parquet")
    parser.add_argument("--batch-size", type=int, default=32, help="images a batch (32)")
    arguments = parser.parse_args()
    if arguments.batch_size < 1:
        parser.error(f"--batch-size must be at least 1. Received: {arguments.batch_size}.")
    if arguments.output.exists() and any(arguments.output.iterdir()):
        # Some peers add to a folder: its rows would be there twice.
        parser.error(f"--output must be new or empty. Received: {arguments.output}.")
    arguments.output.mkdir(parents=True, exist_ok=True)
    with open(arguments.manifest, newline="", encoding="utf-8") as file:
        rows = tuple(Row(line["image_id"], line["uri"]) for line in csv.DictReader(file))
    if not rows:
        parser.error(f"--manifest must name an image. Received: {arguments.manifest}, empty.")
    # Absolute, because the workers of some peers run in another folder.
    output, model = (os.path.abspath(path) for path in (arguments.output, arguments.model))
    return Job(rows, model, output, arguments.batch_size)


@dataclasses.dataclass(frozen=True)
class FirstRead:
    """The moment when the first image was read, in whichever process that was.

    A file stands for the moment, because workers share no memory.

    Attributes:
      path: Of the file, in a folder that exists.
    """

    path: str

    def mark(self) -> None:
        """Says that an image is about to be read; only the first time counts."""
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL))

    def forget(self) -> None:
        """Makes the next mark the first: for after a warm-up."""
        Path(self.path).unlink(missing_ok=True)

    @property
    def time(self) -> float:
        """Seconds since the epoch."""
        return os.stat(self.path).st_mtime


@contextlib.contextmanager
def first_read() -> Iterator[FirstRead]:
    """Yields a clock that has not been marked."""
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        yield FirstRead(os.path.join(folder, "first-read"))


def load_square(uri: str, clock: FirstRead) -> np.ndarray:
    """Returns uint8 `(224, 224)`, grey, 0 to 255: an image as the network takes it.

    Args:
      uri: Local path.
      clock: Marked before the file is opened.
    """
    clock.mark()
    with Image.open(uri) as image:
        return np.asarray(image.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def load_frozen(model: str, batch_size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns this project's frozen graph on TensorFlow, less its maps, called once.

    It takes uint8 `(batch, 224, 224)` and returns float32 `(batch, 15)`, of any batch
    length.

    Args:
      model: Folder of a bundle.
      batch_size: Images in the first call, which initialises what later calls use.
    """
    # Here, because only workers need TensorFlow where a driver calls this module too.
    from model.bundle import load_network
    from model.folding import fold_batch_norms
    from model.frozen import TensorFlowGraph

    network = fold_batch_norms(load_network(model))
    graph = TensorFlowGraph(lambda squares: [network(squares, training=False)])

    def score(squares: np.ndarray) -> np.ndarray:
        (scores,) = graph(squares)
        return scores

    score(np.zeros((batch_size, SIZE, SIZE), np.uint8))
    return score


def score_columns(scores: np.ndarray) -> dict[str, np.ndarray]:
    """Returns each column of `scores`, float32 `(batch, 15)`, under its name."""
    return dict(zip(SCORE_COLUMNS, np.ascontiguousarray(scores.T), strict=True))


def write_scores(folder: str, rows: Sequence[Row], scores: np.ndarray) -> None:
    """Writes one Parquet file, for peers that have no writer of their own.

    Args:
      folder: Exists.
      rows: One an image.
      scores: float32 `(len(rows), 15)`.
    """
    columns = {"image_id": [row.image_id for row in rows], **score_columns(scores)}
    table = pa.table(columns, schema=SCHEMA)
    parquet.write_table(table, os.path.join(folder, "scores.parquet"))


def report(job: Job, began: float, software: Sequence[str]) -> None:
    """Prints the line of JSON that ends a peer's output; called when all is written.

    Args:
      job: That was done.
      began: When the first image was read, in seconds since the epoch.
      software: Names of installed distributions to give the versions of.
    """
    result = {
        "images": len(job.rows),
        "start_s": round(began - _process_start(), 3),
        "score_s": round(time.time() - began, 3),
        "software": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in software},
        },
    }
    print(json.dumps(result), flush=True)


def _process_start() -> float:
    """Returns when this process started, in seconds since the epoch; Linux alone tells.

    A clock in this module would not see the imports that a peer has before it.
    """
    # The command's name, in parentheses, may hold spaces: fields count from behind it.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - started)
