"""Columns of CSV, TSV, JSON lines and Parquet files, as text or as numbers.

An empty cell is the empty string as text and NaN as a number; so is a cell that
is no number. Ids that look like numbers stay text, with their leading zeros.
"""

import contextlib
import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import InputError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")
_PARQUET = ".parquet"
_EXTENSIONS = (*_DELIMITERS, *_JSON_LINES, _PARQUET)


def table_columns(path: str) -> list[str]:
    """Returns the names of a table's columns.

    Raises:
      InputError: The file cannot be read as its extension says.
    """
    extension = _extension(path)
    if extension == _PARQUET:
        return table_schema(path).names
    with _readable(path):
        if extension in _JSON_LINES:
            return list(_json_lines(path).columns)
        return list(pd.read_csv(path, nrows=0, **_csv_options(extension)).columns)


def table_schema(path: str) -> pa.Schema:
    """Returns the schema of a Parquet file, with its metadata.

    Raises:
      InputError: The file is no Parquet.
    """
    with _readable(path):
        return pq.read_schema(path)


def read_table(path: str, texts: Sequence[str], numbers: Sequence[str] = ()) -> pd.DataFrame:
    """Returns columns of a table: `texts` as strings, `numbers` as float64.

    Args:
      path: Ends in .csv, .tsv, .jsonl or .ndjson, each also with .gz, or in .parquet.
      texts: Columns to read as text; the empty string where a cell is empty.
      numbers: Columns to read as numbers; NaN where a cell is none.

    Raises:
      InputError: The file cannot be read as its extension says.
    """
    extension, columns = _extension(path), [*texts, *numbers]
    with _readable(path):
        if extension == _PARQUET:
            cells = _parquet(path, texts, numbers)
        elif extension in _JSON_LINES:
            cells = _json_lines(path)[columns]
        else:
            cells = pd.read_csv(path, usecols=columns, **_csv_options(extension))[columns]
    for column in numbers:
        cells[column] = pd.to_numeric(cells[column], errors="coerce").astype(np.float64)
    return cells


def _extension(path: str) -> str:
    name = os.fspath(path).lower()
    extension = os.path.splitext(name.removesuffix(".gz"))[1]
    if extension not in _EXTENSIONS or (extension == _PARQUET and name.endswith(".gz")):
        raise InputError(
            f"A table must end in one of {', '.join(_EXTENSIONS)}, or these with .gz except"
            f" Parquet. Received: {path}."
        )
    return extension


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    """Turns what readers raise into an error that tells nothing of the content."""
    try:
        yield
    except (OSError, EOFError, zlib.error, ValueError, pa.ArrowException) as error:
        cause = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(
            f"{path} must be a table that can be read as its extension says."
            f" Received: {cause}. Check the path, or write the file anew."
        ) from error


def _csv_options(extension: str) -> dict:
    return {
        "sep": _DELIMITERS[extension],
        "dtype": str,
        "keep_default_na": False,
        "encoding": "utf-8-sig",
    }


def _json_lines(path: str) -> pd.DataFrame:
    # Not pandas' own reader, which makes 1.0 of an id 1 where another line has none.
    opened = gzip.open if os.fspath(path).lower().endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8-sig") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    table = pd.DataFrame(rows, dtype=object)
    return table.where(table.notna(), "").astype(str)


def _parquet(path: str, texts: Sequence[str], numbers: Sequence[str]) -> pd.DataFrame:
    # ParquetFile, since read_table would add the folder's run_id=... as a column.
    with pq.ParquetFile(path) as file:
        table = file.read(columns=[*texts, *numbers])
    cells = {name: table[name].cast(pa.string()).fill_null("").to_pandas() for name in texts}
    return pd.DataFrame(cells | {name: table[name].to_pandas() for name in numbers})
