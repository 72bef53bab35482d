"""Checking a manifest: which images a run is to score.

`check_manifest` streams a manifest of any format into one local Parquet file of
known shape; `read_row_group` reads a wave of it back. A manifest of ten million
rows needs no memory proportional to it: rows pass in batches, and the search for
repeated ids spills to disk.

Messages name a row by its image_id where the manifest gave one, else by its number:
a path can hold a patient's name.
"""

import glob
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.database import connect
from pipeline.manifest_formats import Row, manifest_columns, read_rows, write_rows
from pipeline.shared_files import open_shared
from pipeline.uris import image_id_of, manifest_folder, redacted_id, resolve_uri
from schemas.errors import InputError
from schemas.tables import UNDERSTOOD_COLUMNS, manifest_schema, scores_schema

NIH_COLUMNS = {
    "uri": "Image Index",
    "image_id": "Image Index",
    "patient_id": "Patient ID",
    "view_position": "View Position",
    "labels": "Finding Labels",
}
"""What the NIH `Data_Entry` CSV calls the columns of a manifest."""

_DUCKDB_COLUMNS = ("file_row_number", "_part", "_name", "_cam", "held_by_run")
"""Names that queries of the commit use for themselves."""

_EMPTY_URIS = """
    SELECT file_row_number + 1, count(*) OVER ()
    FROM read_parquet(?, file_row_number = true, hive_partitioning = false)
    WHERE uri IS NULL ORDER BY 1 LIMIT 3"""
_REPEATED_IDS = """
    SELECT image_id, min(file_row_number) + 1, max(file_row_number) + 1, count(*) OVER ()
    FROM read_parquet(?, file_row_number = true, hive_partitioning = false)
    GROUP BY image_id HAVING count(*) > 1 ORDER BY 2 LIMIT 3"""


@dataclass(frozen=True)
class CheckedManifest:
    """A manifest that passed every check, as a local Parquet file.

    Attributes:
      path: The Parquet file, of `schemas.tables.manifest_schema(carried)`.
      rows: Number of images.
      row_groups: Number of row groups; a wave of a local run is one or more.
      carried: Columns that go on to the scores.
    """

    path: str
    rows: int
    row_groups: int
    carried: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One image: its id, its resolved uri, and the values that go to the scores."""

    image_id: str
    uri: str
    carried: tuple[str | None, ...]


def carried_columns(uri: str, carry: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns the columns of a manifest that go on to the scores, without reading its rows.

    Args:
      uri: As for `check_manifest`.
      carry: Columns to carry beside `UNDERSTOOD_COLUMNS`.

    Raises:
      InputError: The manifest has not the columns it must have.
    """
    _check_carry(carry)
    return _carried(_layout(uri, carry))


def check_manifest(
    uri: str, *, into: str, carry: Sequence[str] = (), redact_ids: bool = False
) -> CheckedManifest:
    """Writes the checked, normalised form of a manifest, in the manifest's order.

    Args:
      uri: CSV, TSV, JSON lines, Parquet or a text file of paths, by extension;
        local or of any scheme that Beam's FileSystems know.
      into: Local Parquet file to write; appears only if every check passes.
      carry: Columns to carry beside `UNDERSTOOD_COLUMNS`.
      redact_ids: Whether an id that the manifest does not give is made so that it
        does not tell the uri.

    Raises:
      InputError: The manifest breaks a rule.
    """
    _check_carry(carry)
    layout = _layout(uri, carry)
    carried = _carried(layout)
    folder = os.path.dirname(os.path.abspath(into))
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        unchecked = os.path.join(scratch, "unchecked.parquet")
        write_rows(_normalised(uri, layout, redact_ids), manifest_schema(carried).names, unchecked)
        metadata = pq.read_metadata(unchecked)
        if not metadata.num_rows:
            raise _no_rows(uri)
        _check_rows(unchecked, named="image_id" in layout)
        os.replace(unchecked, into)
    return CheckedManifest(into, metadata.num_rows, metadata.num_row_groups, carried)


def read_row_group(path: str, index: int) -> list[ManifestRow]:
    """Returns row group `index`, from 0, of a checked manifest that workers share."""
    with open_shared(path) as file:
        table = pq.ParquetFile(file).read_row_group(index)
    rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
    return [ManifestRow(image_id, uri, tuple(carried)) for image_id, uri, *carried in rows]


def _check_carry(carry: Sequence[str]) -> None:
    # Whatever the case: DuckDB and BigQuery do not tell Flagged from flagged.
    own = (*scores_schema(UNDERSTOOD_COLUMNS).names, "run_id", *_DUCKDB_COLUMNS)
    taken = {name.casefold() for name in own}
    for name in dict.fromkeys(carry):
        if name in UNDERSTOOD_COLUMNS:
            continue
        if name.casefold() in taken:
            raise InputError(
                "carry must name a column that the scores table does not have or use already, in"
                f" any case. Received: carry={name!r}. Rename it in the manifest."
            )
        taken.add(name.casefold())


def _layout(uri: str, carry: Sequence[str]) -> dict[str, str]:
    """Returns the file's name for `uri`, `image_id` if it has any, and each carried column."""
    found = manifest_columns(uri)
    if not found:
        raise _no_rows(uri)
    columns = {name: name for name in found}
    if "uri" not in found and NIH_COLUMNS["uri"] in found:
        columns = {name: nih for name, nih in NIH_COLUMNS.items() if nih in found} | columns
    if "uri" not in columns:
        raise InputError(
            "manifest must have a column 'uri', or be the NIH's with 'Image Index'."
            f" Received: columns {_listed(found)}. Rename the column that holds the paths."
        )
    if missing := [name for name in carry if name not in columns]:
        raise InputError(
            f"carry must name a column of the manifest. Received: carry={missing[0]!r}."
            f" Its columns: {_listed(found)}."
        )
    wanted = dict.fromkeys(("uri", "image_id", *UNDERSTOOD_COLUMNS, *carry))
    layout = {name: columns[name] for name in wanted if name in columns}
    if doubled := [column for column in layout.values() if found.count(column) > 1]:
        raise InputError(
            f"manifest must have one column of a name. Received: {found.count(doubled[0])}"
            f" columns {doubled[0]!r}. Rename or remove one."
        )
    return layout


def _carried(layout: dict[str, str]) -> tuple[str, ...]:
    return tuple(name for name in layout if name not in ("uri", "image_id"))


def _listed(columns: Sequence[str]) -> str:
    """Lists names of letters alone: without a header, a patient's data would stand here."""
    names = [repr(name) for name in columns if name.replace(" ", "").replace("_", "").isalpha()]
    hidden = len(columns) - len(names)
    return ", ".join(names + [f"{hidden} of other characters"] * bool(hidden))


def _normalised(uri: str, layout: dict[str, str], redact_ids: bool) -> Iterator[Row]:
    """Yields id, resolved uri and carried values; the first two None where uri is empty."""
    folder = manifest_folder(uri)
    texts = {layout[name] for name in ("uri", "image_id") if name in layout}
    for path, *values in read_rows(uri, list(layout.values()), texts):
        image_id = values.pop(0) if "image_id" in layout else None
        if path is None:
            yield (None, None, *values)
        else:
            resolved = resolve_uri(path, folder)
            if not image_id:
                image_id = redacted_id(resolved) if redact_ids else image_id_of(path, folder)
            yield (image_id, resolved, *values)


def _no_rows(uri: str) -> InputError:
    return InputError(
        f"manifest must have at least one row. Received: manifest={uri!r}, without any."
    )


def _check_rows(path: str, *, named: bool) -> None:
    """Raises if a uri is missing from the normalised manifest or an image_id occurs twice.

    Args:
      path: Local Parquet file, in a folder to spill to.
      named: Whether the manifest gave the ids, so that they may be told.
    """
    with connect(Path(path).parent) as connection:
        empty = connection.execute(_EMPTY_URIS, [glob.escape(path)]).fetchall()
        if empty:
            raise InputError(
                f"uri must not be empty. Received: {empty[0][1]} empty, first in row"
                f" {', '.join(str(row) for row, _ in empty)} (from 1, without the header)."
                " Fill them in or remove the rows."
            )
        repeated = connection.execute(_REPEATED_IDS, [glob.escape(path)]).fetchall()
    if repeated:
        names = [
            f"{image_id!r} (rows {first} and {last})" if named else f"rows {first} and {last}"
            for image_id, first, last, _ in repeated
        ]
        raise InputError(
            f"image_id must be unique. Received: {repeated[0][3]} more than once, first"
            f" {', '.join(names)}. Remove the rows that repeat one, or give each its own id."
        )
