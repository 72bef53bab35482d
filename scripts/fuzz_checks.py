"""What must hold of a damaged image or manifest; whatever does not is raised.

A check is made once a process and called with one input after another. It returns what
became of the input, in a word for the count.
"""

import concurrent.futures
import csv
import gzip
import io
import itertools
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from fuzz_inputs import Original, drawn_images

from model import preprocessing
from model.dicom_identity import read_identity
from schemas.contract import STANDARD_CONTRACT
from schemas.errors import InputError
from schemas.rejects import ImageError, Stage

SQUARE, CHECKED = "square", "checked"
"""The outcomes of what is taken: pixels, and a manifest whose rows are all there."""

_SIDE = STANDARD_CONTRACT.size
_COPIES = ("copy.csv", "copy.tsv.gz", "copy.jsonl", "copy.parquet")


class Harm(Exception):
    """Something that must hold does not."""


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise Harm(rule)


class CheckImages:
    """Decodes an image twice, the first time beside an intact one in another thread."""

    def __init__(self):
        self._intact = [
            (image.data, preprocessing.prepare(image.data).pixels) for image in drawn_images()
        ]
        self._neighbours = itertools.cycle(self._intact)
        self._beside = concurrent.futures.ThreadPoolExecutor(1)

    def __call__(self, image: Original) -> str:
        """Returns `square` or the reason of the reject.

        Raises:
          Harm: The outcome is neither or differs the second time, or a neighbour changed.
        """
        data, pixels = next(self._neighbours)
        neighbour = self._beside.submit(preprocessing.prepare, data)
        outcome, levels = _decoded(image.data)
        _require(np.array_equal(neighbour.result().pixels, pixels), "a neighbour has other pixels")
        again, levels_again = _decoded(image.data)
        _require((again, levels_again) == (outcome, levels), "another outcome the second time")
        _check_identity(image.data)
        return outcome


def _decoded(data: bytes) -> tuple[str, bytes]:
    """Returns what became of an image, and the square's levels where there is one."""
    try:
        prepared = preprocessing.prepare(data)
    except ImageError as error:
        _require(error.reason.stage is Stage.DECODE, f"{error.reason} is no reason of decoding")
        _require("\n" not in error.detail, "a detail of more than one line")
        return error.reason.value, b""
    square = prepared.pixels
    _require(
        (square.shape, square.dtype) == ((_SIDE, _SIDE), np.uint8),
        f"a square of shape {square.shape} and type {square.dtype}",
    )
    _require(prepared.width > 0 and prepared.height > 0, "a size of zero")
    return SQUARE, square.tobytes()


def _check_identity(data: bytes) -> None:
    """Reads the header for a manifest, whole and as the start of a file; most have none."""
    for is_whole in (True, False):
        try:
            found = read_identity(data, is_whole=is_whole)
        except ImageError as error:
            _require("\n" not in error.detail, "a detail of more than one line")
        else:
            text = found.patient_id or ""
            _require(text.isprintable(), "an id of a patient that cannot be printed")


class CheckManifests:
    """Checks a manifest, writes what came out in another format, and checks that again."""

    def __init__(self, scratch: str):
        # Beam takes seconds and memory that the images need not.
        from pipeline import manifest, manifest_formats

        self._check_manifest = manifest.check_manifest
        self._read_row_group = manifest.read_row_group
        self._write_rows = manifest_formats.write_rows
        self._scratch = Path(scratch)
        self._copies = itertools.cycle(_COPIES)

    def __call__(self, manifest: Original) -> str:
        """Returns `checked`, or the rule that the refusal names.

        Raises:
          Harm: Rows are lost, doubled or changed, or a message has more than one line.
        """
        path, copy = self._scratch / f"fuzz-{manifest.name}", self._scratch / next(self._copies)
        path.write_bytes(manifest.data)
        try:
            columns, rows = self._checked(path)
        except InputError as error:
            _require("\n" not in str(error), "a message of more than one line")
            return _rule_of(error)
        _require(len(rows) == _count_rows(manifest), "not as many rows as the file holds")
        ids = {row[0] for row in rows}
        _require(len(ids) == len(rows) and all(ids), "an id that is empty or not unique")
        self._write_rows(rows, columns, str(copy))
        _require(self._checked(copy) == (columns, rows), f"another manifest from {copy.name}")
        return CHECKED

    def _checked(self, path: Path) -> tuple[list[str], list[tuple]]:
        """Returns names of columns and all rows of a manifest, as a run takes them."""
        into = str(self._scratch / "checked.parquet")
        checked = self._check_manifest(str(path), into=into)
        groups = [self._read_row_group(into, group) for group in range(checked.row_groups)]
        rows = [(row.image_id, row.uri, *row.carried) for group in groups for row in group]
        _require(checked.rows == len(rows), f"{checked.rows} rows said, {len(rows)} read back")
        return ["image_id", "uri", *checked.carried], rows


def _rule_of(error: InputError) -> str:
    return re.sub(r"\d+", "N", str(error).partition(" Received: ")[0])


def _count_rows(manifest: Original) -> int:
    """Returns the number of rows of a manifest by other code than the project's."""
    name, data = manifest.name, manifest.data
    if name.endswith(".parquet"):
        return pq.ParquetFile(io.BytesIO(data)).metadata.num_rows
    text = (gzip.decompress(data) if name.endswith(".gz") else data).decode("utf-8-sig")
    lines = io.StringIO(text, newline="")
    if ".csv" in name or ".tsv" in name:
        delimiter = "\t" if ".tsv" in name else ","
        return sum(map(bool, csv.reader(lines, delimiter=delimiter))) - 1
    return sum(bool(line.strip()) for line in lines)
