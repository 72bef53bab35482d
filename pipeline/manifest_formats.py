"""The file formats of a manifest: its columns, and its rows read and written one by one.

An empty cell is a missing value in every format. Values that are no strings become
text: `17`, `true`, `2017-02-03`. Messages name a line by its number, never by what
it holds.
"""

import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import BinaryIO, TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from schemas.errors import InputError

ROW_GROUP_ROWS = 4096
"""Rows a row group of the Parquet that `write_rows` writes; the last may have fewer."""

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

_DELIMITERS = {"csv": ",", "tsv": "\t"}

Row = tuple[str | None, ...]


def manifest_format(path: str) -> tuple[str, bool]:
    """Returns the format that the extension of `path` names, and whether it is gzipped.

    Raises:
      InputError: The extension is unknown, or that of gzipped Parquet.
    """
    name = path.lower()
    gzipped = name.endswith(".gz")
    kind = FORMATS.get(os.path.splitext(name.removesuffix(".gz"))[1])
    if kind is None or (gzipped and kind == "parquet"):
        raise InputError(
            f"manifest must end in one of {', '.join(FORMATS)}, or these with .gz except Parquet."
            f" Received: manifest={path!r}."
        )
    return kind, gzipped


def manifest_columns(uri: str) -> list[str]:
    """Returns the names of a manifest's columns as the file has them; none if it is empty.

    JSON lines are read through for this: a key may turn up in the last line.

    Raises:
      InputError: The file cannot be read as its extension says.
    """
    kind, _ = manifest_format(uri)
    if kind == "parquet":
        with _parquet_file(uri) as file:
            return file.schema_arrow.names
    if kind == "jsonl":
        return list(dict.fromkeys(key for _, row in _json_objects(uri) for key in row))
    if kind == "text":
        return ["uri"]
    return next((cells for _, cells in _records(uri, _DELIMITERS[kind])), [])


def read_rows(uri: str, columns: Sequence[str], texts: Collection[str] = ()) -> Iterator[Row]:
    """Yields the cells of `columns` for each row.

    Args:
      uri: The manifest.
      columns: Names as the file has them.
      texts: Those of `columns` that must hold strings: a path or an id that was read
        as a number has lost its leading zeros.

    Raises:
      InputError: The file cannot be read as its extension says, or holds a value of
        another type.
    """
    kind, _ = manifest_format(uri)
    if kind == "parquet":
        return _parquet_rows(uri, columns, texts)
    if kind == "jsonl":
        return _json_rows(uri, columns, texts)
    if kind == "text":
        return ((line.rstrip("\r\n"),) for line in _lines(uri) if line.strip())
    return _delimited_rows(uri, _DELIMITERS[kind], columns)


def write_rows(rows: Iterable[Row], columns: Sequence[str], path: str) -> None:
    """Writes rows to a local file by its extension; the same rows make the same bytes.

    Args:
      rows: Strings or None, in the order of `columns`.
      columns: Their names.
      path: Of any format but text; written over.

    Raises:
      InputError: A string cannot be written as UTF-8.
    """
    kind, gzipped = manifest_format(path)
    try:
        if kind == "parquet":
            _write_parquet(rows, columns, path)
            return
        # Arrow's gzip, unlike Python's, leaves out the time and the file's name.
        raw = pa.output_stream(path, compression="gzip" if gzipped else None)
        with io.TextIOWrapper(raw, "utf-8", newline="") as file:
            if kind == "jsonl":
                file.writelines(_json_line(columns, row) for row in rows)
            else:
                _write_delimited(file, itertools.chain([columns], rows), _DELIMITERS[kind])
    except UnicodeEncodeError as error:
        raise InputError(
            "manifest must hold names of files and folders in UTF-8. Received: one of another"
            " encoding. Rename it; `find FOLDER | grep -axv '.*'` shows such names."
        ) from error


def _write_delimited(file: TextIO, rows: Iterable[Row], delimiter: str) -> None:
    plain, quoted = (
        csv.writer(file, delimiter=delimiter, lineterminator="\n", quoting=quoting)
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    for row in rows:
        # Python 3.11 leaves a carriage return unquoted, and reads it as the end of a row.
        torn = any("\r" in cell for cell in row if cell)
        (quoted if torn else plain).writerow(row)


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


def _decoded(raw: BinaryIO, *, gzipped: bool) -> TextIO:
    source = gzip.GzipFile(fileobj=raw) if gzipped else raw
    return io.TextIOWrapper(source, "utf-8-sig", newline="")


def _lines(uri: str) -> Iterator[str]:
    """Yields the lines of a UTF-8 text file with their ends, without a byte order mark."""
    number = 0
    with _open(uri) as raw, _decoded(raw, gzipped=manifest_format(uri)[1]) as text:
        try:
            for line in text:
                if "\0" in line:
                    raise UnicodeError("a NUL byte")
                yield line
                number += 1
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                "manifest must be a whole gzip file. Received: damaged or cut short after line"
                f" {number}. Copy it again."
            ) from error
        except UnicodeError as error:
            raise InputError(
                f"manifest must be UTF-8 text. Received: {error}, after line {number}."
                " Save it as UTF-8."
            ) from error


def _bad_line(number: int, rule: str, received: str) -> InputError:
    return InputError(f"line {number} of the manifest {rule}. Received: {received}. Mend the line.")


def _records(uri: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields first line and cells of each record that is no blank line, header included."""
    reader = csv.reader(_lines(uri), delimiter=delimiter, strict=True)
    number = 1
    try:
        for cells in reader:
            if cells:
                yield number, cells
            number = reader.line_num + 1
    except csv.Error as error:
        raise _bad_line(number, "must be quoted as CSV is", str(error)) from error


def _delimited_rows(uri: str, delimiter: str, columns: Sequence[str]) -> Iterator[Row]:
    records = _records(uri, delimiter)
    _, header = next(records)
    places = [header.index(column) for column in columns]
    for number, cells in records:
        if len(cells) != len(header):
            raise _bad_line(number, f"must have {len(header)} cells", str(len(cells)))
        yield tuple(cells[place] or None for place in places)


def _json_objects(uri: str) -> Iterator[tuple[int, dict]]:
    """Yields line number and object of each line that is not blank."""
    for number, line in enumerate(_lines(uri), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise _bad_line(number, "must be JSON", error.msg) from error
        except (ValueError, RecursionError) as error:
            received = "a number of too many digits, or values nested too deeply"
            raise _bad_line(number, "must be JSON", received) from error
        if not isinstance(value, dict):
            raise _bad_line(number, "must be a JSON object", f"a {type(value).__name__}")
        yield number, value


def _json_rows(uri: str, columns: Sequence[str], texts: Collection[str]) -> Iterator[Row]:
    for number, row in _json_objects(uri):
        yield tuple(
            _json_cell(row.get(column), column, number, column in texts) for column in columns
        )


def _json_cell(value: object, column: str, number: int, is_text: bool) -> str | None:
    if isinstance(value, str) and "\0" in value:
        raise _bad_line(number, f"must be without NUL in {column!r}", "a NUL character")
    if value is None or isinstance(value, str):
        return value or None
    if is_text or isinstance(value, dict | list):
        rule = f"must have a string{'' if is_text else ', number or boolean'} in {column!r}"
        raise _bad_line(number, rule, f"a {type(value).__name__}")
    return json.dumps(value)


def _json_line(columns: Sequence[str], row: Row) -> str:
    return json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n"


@contextlib.contextmanager
def _parquet_file(uri: str) -> Iterator[pq.ParquetFile]:
    with _open(uri) as file:
        try:
            # Buffered, or a column of one huge row group would be in memory whole.
            yield pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        except (pa.ArrowException, UnicodeError, OSError) as error:
            raise InputError(
                f"manifest must be whole, valid Parquet. Received: manifest={uri!r}"
                f" ({type(error).__name__}). Write or copy it again."
            ) from error


def _parquet_rows(uri: str, columns: Sequence[str], texts: Collection[str]) -> Iterator[Row]:
    with _parquet_file(uri) as file:
        for column in columns:
            _check_type(file.schema_arrow.field(column), column in texts)
        for batch in file.iter_batches(ROW_GROUP_ROWS, columns=list(set(columns))):
            cells = [batch[column].cast(pa.string()) for column in columns]
            for column, values in zip(columns, cells, strict=True):
                if pc.any(pc.match_substring(values, "\0")).as_py():
                    raise InputError(
                        f"manifest must be without NUL in {column!r}. Received: a NUL character."
                        " Remove it."
                    )
            for row in zip(*(values.to_pylist() for values in cells), strict=True):
                yield tuple(text or None for text in row)


def _check_type(field: pa.Field, is_text: bool) -> None:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    strings = pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.null()
    if pa.types.is_nested(kind) or (is_text and not strings):
        allowed = "strings" if is_text else "strings, numbers, booleans or dates"
        raise InputError(
            f"manifest must have {allowed} in {field.name!r}. Received: {kind}. Convert the column."
        )


def _write_parquet(rows: Iterable[Row], columns: Sequence[str], path: str) -> None:
    schema = pa.schema([(column, pa.string()) for column in columns])
    rows = iter(rows)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while batch := list(itertools.islice(rows, ROW_GROUP_ROWS)):
            arrays = [pa.array(values, pa.string()) for values in zip(*batch, strict=True)]
            writer.write_table(pa.table(arrays, schema))
