"""Reading a manifest and checking it: which images a run is to score.

`check_manifest` streams a manifest of any format into one local Parquet file of
known shape; `read_row_group` reads a wave of it back. A manifest of ten million
rows needs no memory proportional to it: rows pass in batches, and the search for
repeated ids spills to disk.

An empty cell is a missing value in every format. Messages name a row by its
image_id where the manifest gave one, else by its number: a path can hold a
patient's name.
"""

import contextlib
import csv
import glob
import gzip
import io
import itertools
import json
import os
import re
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from schemas.errors import InputError
from schemas.tables import UNDERSTOOD_COLUMNS, manifest_schema, scores_schema

ROW_GROUP_ROWS = 4096
"""Rows a row group of a checked manifest; a wave of a local run is one or more."""

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".lst": "text",
}
"""Format of a manifest by its extension, before an optional `.gz`."""

NIH_COLUMNS = {
    "uri": "Image Index",
    "image_id": "Image Index",
    "patient_id": "Patient ID",
    "view_position": "View Position",
    "labels": "Finding Labels",
}
"""What the NIH `Data_Entry` CSV calls the columns of a manifest."""

DELIMITERS = {"csv": ",", "tsv": "\t"}
_MAX_LINE_BYTES = 1 << 24
_BUFFER_BYTES = 1 << 20
_DUCKDB_CONFIG = {"memory_limit": "1GB", "threads": 2, "preserve_insertion_order": False}
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_MEMBER = re.compile(r"(.*?\.(?:tar|tar\.gz|tgz))(#.*)", re.IGNORECASE | re.DOTALL)
_COLUMN_NAME = re.compile(r"(?!.*\d{3})[^\W\d][\w \[\],()#-]{0,63}")
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")
_JSON_TYPES = {"uri": str, "image_id": str | int, "carried": str | int | float}
_WRONG_TYPE = {
    "uri": "a string",
    "image_id": "a string or an integer",
    "carried": "a string, a number, a boolean or a date",
}


@dataclass(frozen=True)
class CheckedManifest:
    """A manifest that passed every check, as a local Parquet file.

    Attributes:
      path: The Parquet file, of `schemas.tables.manifest_schema(carried)`.
      rows: Number of images.
      row_groups: Number of row groups, of `ROW_GROUP_ROWS` rows but the last.
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


@dataclass(frozen=True)
class _Layout:
    """Which column of the file holds what; `carried` by name in the checked manifest."""

    uri: str
    image_id: str | None
    carried: dict[str, str]

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Role and name of each column to read: uri, image_id if any, carried."""
        named = [("uri", self.uri), ("image_id", self.image_id)]
        named += [("carried", column) for column in self.carried.values()]
        return [(role, column) for role, column in named if column is not None]


def check_manifest(uri: str, *, into: str, carry: Sequence[str] = ()) -> CheckedManifest:
    """Writes the checked, normalised form of a manifest, in the manifest's order.

    Args:
      uri: CSV, TSV, JSON lines, Parquet or a text file of paths, by extension;
        local or of any scheme that Beam's FileSystems know.
      into: Local Parquet file to write; removed again if a check fails.
      carry: Columns to carry beside `UNDERSTOOD_COLUMNS`. Values that are no
        strings are carried in the form that Python's `str` gives them.

    Raises:
      InputError: The manifest breaks a rule.
    """
    if os.path.exists(into) and os.path.exists(uri) and os.path.samefile(uri, into):
        raise ValueError("into must not be the manifest itself, which it would overwrite.")
    _check_carry(carry)
    layout = _layout(manifest_columns(uri), carry)
    folder = _utf8_folder(uri)
    os.makedirs(os.path.dirname(os.path.abspath(into)), exist_ok=True)
    try:
        rows = _write_checked(uri, layout, folder, into)
        _check_unique(into, layout, folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(into)
        raise
    return CheckedManifest(into, rows, -(-rows // ROW_GROUP_ROWS), tuple(layout.carried))


def read_row_group(path: str, index: int) -> list[ManifestRow]:
    """Returns row group `index`, from 0, of a checked manifest anywhere Beam can read."""
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        table = pq.ParquetFile(file).read_row_group(index)
    image_ids, uris, *carried = (column.to_pylist() for column in table.columns)
    values = zip(*carried, strict=True) if carried else itertools.repeat(())
    return [ManifestRow(*row) for row in zip(image_ids, uris, values, strict=False)]


def manifest_format(path: str) -> tuple[str, bool]:
    """Returns the format that the extension of `path` names, and whether it is gzipped.

    Raises:
      InputError: The extension is unknown, or that of gzipped Parquet.
    """
    name = path.lower()
    gzipped = name.endswith(".gz")
    extension = os.path.splitext(name.removesuffix(".gz"))[1]
    if extension not in FORMATS:
        raise InputError(
            f"manifest must end in one of {', '.join(FORMATS)}, or these with .gz."
            f" Received: manifest={path!r}."
        )
    if gzipped and FORMATS[extension] == "parquet":
        raise InputError(
            f"manifest must be Parquet without gzip around it. Received: manifest={path!r}."
            " Decompress it; Parquet compresses within itself."
        )
    return FORMATS[extension], gzipped


def manifest_columns(uri: str) -> list[str]:
    """Returns the names of a manifest's columns as the file has them.

    JSON lines are read through for this: a key may turn up in the last line.

    Raises:
      InputError: The file cannot be read as its extension says, or is empty.
    """
    kind, _ = manifest_format(uri)
    if kind == "parquet":
        with _parquet_file(uri) as file:
            return file.schema_arrow.names
    if kind == "jsonl":
        columns = list(dict.fromkeys(key for _, row in _json_objects(uri) for key in row))
    elif kind == "text":
        columns = ["uri"]
    else:
        columns = next((cells for _, cells in _records(uri, DELIMITERS[kind])), [])
    if not columns:
        raise _no_rows(uri)
    return columns


def has_scheme(uri: str) -> bool:
    """Returns whether `uri` begins as `gs://` does, and so is no local path."""
    return _SCHEME.match(uri) is not None


def manifest_folder(uri: str) -> str:
    """Returns the folder that a manifest's relative uris start from, absolute."""
    if has_scheme(uri):
        return uri.rpartition("/")[0]
    return os.path.dirname(os.path.abspath(uri))


def resolve_uri(uri: str, folder: str) -> str:
    """Returns `uri` made absolute against a manifest's folder.

    What has a scheme stays as it is. Local paths are normalised, without resolving
    symbolic links. A member of an archive (`images.tar#member`) keeps its name.
    """
    if has_scheme(uri):
        return uri
    member = "#" in uri and _MEMBER.fullmatch(uri)  # the search for it is slow
    path, suffix = member.groups() if member else (uri, "")
    if path.startswith("/") or not has_scheme(folder):
        return os.path.normpath(os.path.join(folder, path)) + suffix
    return _join_remote(folder, path) + suffix


def image_id_of(uri: str, folder: str) -> str:
    """Returns the id of an image whose manifest gives none; two uris never share one.

    That is the path relative to the manifest's folder where the image lies inside
    it, else the uri as given: never the base name alone.
    """
    return _relative(resolve_uri(uri, folder), folder) or uri


def _relative(resolved: str, folder: str) -> str | None:
    inside = folder.rstrip("/") + "/"
    return resolved[len(inside) :] if resolved.startswith(inside) else None


def _join_remote(folder: str, path: str) -> str:
    """Joins without touching what an object's name may hold, such as `//`."""
    parts = folder.split("/")
    for part in path.split("/"):
        if part == "..":
            parts = parts[: max(3, len(parts) - 1)]  # scheme and bucket stay
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def _utf8_folder(uri: str) -> str:
    folder = manifest_folder(uri)
    if _NOT_TEXT.search(folder):
        raise InputError(
            f"manifest must lie in a folder whose name is UTF-8. Received: manifest={uri!r}."
            " Rename the folder, or move the manifest and make its paths absolute."
        )
    return folder


def _check_carry(carry: Sequence[str]) -> None:
    # Whatever the case: DuckDB and BigQuery do not tell Flagged from flagged.
    taken = {name.casefold() for name in (*scores_schema().names, "run_id", "")}
    for name in carry:
        if name.casefold() in taken:
            raise InputError(
                "carry must name a column that the scores table does not have already."
                f" Received: carry={name!r}. Rename it in the manifest."
            )


def _layout(found: Sequence[str], carry: Sequence[str]) -> _Layout:
    """Returns which column holds what, or raises for one that is missing or doubled."""
    uri = _located("uri", found)
    if uri is None:
        raise InputError(
            "manifest must have a column 'uri', or be the NIH's with 'Image Index'."
            f" Received: columns {_listed(found)}. Rename the column that holds the paths."
        )
    if missing := [name for name in carry if _located(name, found) is None]:
        raise InputError(
            f"carry must name a column of the manifest. Received: carry={missing[0]!r}."
            f" Its columns: {_listed(found)}."
        )
    located = {name: _located(name, found) for name in (*UNDERSTOOD_COLUMNS, *carry)}
    layout = _Layout(
        uri, _located("image_id", found), {name: at for name, at in located.items() if at}
    )
    _check_distinct(layout, found)
    return layout


def _located(name: str, found: Sequence[str]) -> str | None:
    """Returns the column that holds `name`, under its own or the NIH's name."""
    nih = "uri" not in found and NIH_COLUMNS["uri"] in found
    names = (name, NIH_COLUMNS.get(name)) if nih else (name,)
    return next((column for column in names if column in found), None)


def _check_distinct(layout: _Layout, found: Sequence[str]) -> None:
    for _, column in layout.columns:
        if found.count(column) > 1:
            raise InputError(
                f"manifest must have one column of a name. Received: {found.count(column)}"
                f" columns {column!r}. Rename or remove one."
            )
    by_folded = {}
    for name in layout.carried:
        other = by_folded.setdefault(name.casefold(), name)
        if other != name:
            raise InputError(
                "carry must differ from other carried columns by more than case. Received:"
                f" carry={name!r} beside {other!r}. Rename it in the manifest."
            )


def _listed(columns: Sequence[str]) -> str:
    """Lists what looks like column names: without a header they would be an image's data."""
    names = [repr(name) for name in columns if _COLUMN_NAME.fullmatch(name)][:30]
    if hidden := len(columns) - len(names):
        names.append(f"{hidden} not shown (no name of a column, or one too many)")
    return ", ".join(names)


def _write_checked(uri: str, layout: _Layout, folder: str, into: str) -> int:
    """Writes all rows and returns how many there are."""
    schema = manifest_schema(tuple(layout.carried))
    rows, count, empty, first = _read_rows(uri, layout.columns), 0, 0, []
    with pq.ParquetWriter(into, schema, compression="zstd") as writer:
        while batch := list(itertools.islice(rows, ROW_GROUP_ROWS)):
            numbers = [n for n, row in enumerate(batch, count + 1) if row[0] is None]
            count, empty, first = count + len(batch), empty + len(numbers), (first + numbers)[:3]
            if not empty:
                arrays = _checked_columns(batch, layout, folder)
                writer.write_table(pa.table(arrays, schema), row_group_size=ROW_GROUP_ROWS)
    if empty:
        raise InputError(
            f"uri must not be empty. Received: {empty} empty, first in row"
            f" {', '.join(map(str, first))} (from 1, without the header). Fill them in or"
            " remove the rows."
        )
    if not count:
        raise _no_rows(uri)
    return count


def _checked_columns(batch: list[tuple], layout: _Layout, folder: str) -> list[pa.Array]:
    columns = list(zip(*batch, strict=True))
    given = columns[1] if layout.image_id else itertools.repeat(None, len(batch))
    carried = columns[2:] if layout.image_id else columns[1:]
    uris = [resolve_uri(uri, folder) for uri in columns[0]]
    image_ids = [
        image_id or _relative(resolved, folder) or uri
        for image_id, resolved, uri in zip(given, uris, columns[0], strict=True)
    ]
    return [pa.array(values, pa.string()) for values in (image_ids, uris, *carried)]


def _no_rows(uri: str) -> InputError:
    return InputError(
        f"manifest must have at least one row. Received: manifest={uri!r}, without any."
    )


def _check_unique(path: str, layout: _Layout, folder: str) -> None:
    """Raises if an image_id occurs twice in the checked manifest at `path`."""
    query = """
        WITH repeated AS (
            SELECT image_id, min(file_row_number) AS first, max(file_row_number) AS last
            FROM read_parquet(?, file_row_number = true, hive_partitioning = false)
            GROUP BY image_id HAVING count(*) > 1)
        SELECT *, count(*) OVER () FROM repeated ORDER BY first LIMIT 3"""
    where = os.path.dirname(os.path.abspath(path))
    with tempfile.TemporaryDirectory(dir=where, prefix="spill-") as spill:
        config = {**_DUCKDB_CONFIG, "temp_directory": spill}
        with duckdb.connect(config=config) as connection:
            found = connection.execute(query, [glob.escape(os.path.abspath(path))]).fetchall()
    if found:
        names = [_name_repeated(path, layout, folder, *row[1:3]) for row in found]
        raise InputError(
            f"image_id must be unique. Received: {found[0][3]} more than once, first"
            f" {', '.join(names)}. Remove the rows that repeat one, or give each its own id."
        )


def _name_repeated(path: str, layout: _Layout, folder: str, first: int, last: int) -> str:
    """Returns the rows of a repeated id, and the id itself unless it is the image's path."""
    row = read_row_group(path, first // ROW_GROUP_ROWS)[first % ROW_GROUP_ROWS]
    is_path = layout.image_id != layout.uri and resolve_uri(row.image_id, folder) == row.uri
    rows = f"rows {first + 1} and {last + 1}"
    return rows if is_path else f"{row.image_id!r} ({rows})"


def _read_rows(uri: str, columns: list[tuple[str, str]]) -> Iterator[tuple[str | None, ...]]:
    """Yields the cells of `columns`, given by role and name, for each row."""
    kind, _ = manifest_format(uri)
    if kind == "parquet":
        return _parquet_rows(uri, columns)
    if kind == "jsonl":
        return _json_rows(uri, columns)
    if kind == "text":
        return _text_rows(uri)
    return _delimited_rows(uri, DELIMITERS[kind], columns)


def _open(uri: str) -> BinaryIO:
    try:
        # Beam would decompress, but takes a gzip file that was cut short for a whole one.
        return FileSystems.open(uri, compression_type=CompressionTypes.UNCOMPRESSED)
    except Exception as error:  # every file system has errors of its own
        cause = (str(error).splitlines() or [""])[0][:200]
        raise InputError(
            f"manifest must be a file that can be read. Received: manifest={uri!r}"
            f" ({type(error).__name__}: {cause}). Check the path and its permissions."
        ) from error


def _lines(uri: str) -> Iterator[str]:
    """Yields the lines of a UTF-8 text file with their ends, without a byte order mark."""
    with _open(uri) as raw:
        source = gzip.GzipFile(fileobj=raw) if manifest_format(uri)[1] else raw
        file = io.BufferedReader(source, _BUFFER_BYTES)
        for number in itertools.count(1):
            line = _read_line(file, number)
            if not line:
                return
            yield line.removeprefix("\ufeff") if number == 1 else line


def _read_line(file: BinaryIO, number: int) -> str:
    try:
        line = file.readline(_MAX_LINE_BYTES)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"manifest must be a whole gzip file. Received: damaged or cut short after line"
            f" {number - 1}. Copy it again."
        ) from error
    if len(line) == _MAX_LINE_BYTES:
        raise _bad_line(number, f"must be shorter than {_MAX_LINE_BYTES} bytes", "a longer one")
    if b"\0" in line:
        raise _bad_line(number, "must be text", "a NUL byte", "Save the file as UTF-8.")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{line[error.start]:02x} that is none"
        raise _bad_line(number, "must be UTF-8", byte, "Save the file as UTF-8.") from error


def _bad_line(number: int, rule: str, received: str, remedy: str = "Mend the line.") -> InputError:
    return InputError(f"line {number} of the manifest {rule}. Received: {received}. {remedy}")


def _records(uri: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields first line and cells of each record that is no blank line, header included."""
    csv.field_size_limit(_MAX_LINE_BYTES)
    reader = csv.reader(_lines(uri), delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise _bad_line(number, "must be quoted as CSV is", str(error)) from error
        if cells is None:
            return
        if cells:
            yield number, cells


def _delimited_rows(uri: str, delimiter: str, columns: list[tuple[str, str]]) -> Iterator[tuple]:
    records = _records(uri, delimiter)
    _, header = next(records)
    places = [header.index(column) for _, column in columns]
    for number, cells in records:
        if len(cells) != len(header):
            raise _bad_line(number, f"must have {len(header)} cells", f"{len(cells)}")
        yield tuple(cells[place] or None for place in places)


def _text_rows(uri: str) -> Iterator[tuple]:
    for line in _lines(uri):
        if line.strip():
            yield (line.removesuffix("\n").removesuffix("\r"),)


def _json_objects(uri: str) -> Iterator[tuple[int, dict]]:
    """Yields line number and object of each line that is not blank."""
    for number, line in enumerate(_lines(uri), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _bad_line(number, "must be JSON", type(error).__name__) from error
        if not isinstance(value, dict):
            raise _bad_line(number, "must be a JSON object", f"a {type(value).__name__}")
        yield number, value


def _json_rows(uri: str, columns: list[tuple[str, str]]) -> Iterator[tuple]:
    for number, row in _json_objects(uri):
        yield tuple(_json_cell(row.get(name), role, name, number) for role, name in columns)


def _json_cell(value: object, role: str, column: str, number: int) -> str | None:
    if value is None:
        return None
    flag = isinstance(value, bool) and role != "carried"
    if flag or not isinstance(value, _JSON_TYPES[role]):
        rule = f"has the wrong type: {column!r} must be {_WRONG_TYPE[role]}"
        raise _bad_line(number, rule, f"a {type(value).__name__}")
    if _NOT_TEXT.search(text := str(value)):
        raise _bad_line(number, f"must hold text in {column!r}", "a NUL or half a character")
    return text or None


@contextlib.contextmanager
def _parquet_file(uri: str) -> Iterator[pq.ParquetFile]:
    with _open(uri) as file:
        try:
            # Buffered, or a column of one huge row group would be in memory whole.
            yield pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeError, OSError) as error:
            raise InputError(
                f"manifest must be whole, valid Parquet. Received: manifest={uri!r}"
                f" ({type(error).__name__}). Write or copy it again."
            ) from error


def _parquet_rows(uri: str, columns: list[tuple[str, str]]) -> Iterator[tuple]:
    names = list(dict.fromkeys(column for _, column in columns))
    with _parquet_file(uri) as file:
        for role, column in columns:
            _check_arrow_type(role, column, file.schema_arrow.field(column).type)
        first = 1
        for batch in file.iter_batches(ROW_GROUP_ROWS, columns=names):
            cells = [_arrow_cells(batch.column(column), column, first) for _, column in columns]
            yield from zip(*cells, strict=True)
            first += batch.num_rows


def _check_arrow_type(role: str, column: str, arrow_type: pa.DataType) -> None:
    is_type = pa.types
    kind = arrow_type.value_type if is_type.is_dictionary(arrow_type) else arrow_type
    tests = [is_type.is_string, is_type.is_large_string, is_type.is_string_view, is_type.is_null]
    if role != "uri":
        tests.append(is_type.is_integer)
    if role == "carried":
        tests += [is_type.is_boolean, is_type.is_floating, is_type.is_decimal]
        tests += [is_type.is_date, is_type.is_timestamp]
    if not any(test(kind) for test in tests):
        raise InputError(
            f"manifest has a column of the wrong type: {column!r} must be {_WRONG_TYPE[role]}."
            f" Received: {arrow_type}. Convert the column."
        )


def _arrow_cells(array: pa.Array, column: str, first: int) -> list[str | None]:
    """Returns the cells as text; `first` is the number of the first row."""
    try:
        cells = [None if cell is None else str(cell) or None for cell in array.to_pylist()]
        bad = next((n for n, cell in enumerate(cells, first) if cell and "\0" in cell), None)
        where = f"a NUL in row {bad}"
    except (ValueError, OverflowError) as error:
        bad, where = first, f"{type(error).__name__} in rows {first} to {first + len(array) - 1}"
    if bad is not None:
        raise InputError(
            f"manifest must hold text in column {column!r}. Received: {where}. Mend the cell."
        )
    return cells
