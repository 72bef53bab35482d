"""DuckDB as it is used here: bounded memory, spilling to disk."""

from pathlib import Path

import duckdb

_MEMORY_LIMIT = "1GB"

STAGED_PARTS = "read_parquet(?, filename='_part', file_row_number=true, hive_partitioning=false)"
"""Rows of many files with their place. A carried column may be called `filename`."""


def connect(folder: Path) -> duckdb.DuckDBPyConnection:
    """Returns a database in `folder` that spills there instead of filling memory."""
    folder.mkdir(parents=True, exist_ok=True)
    return duckdb.connect(
        folder / "tables.duckdb",
        config={
            "memory_limit": _MEMORY_LIMIT,
            "temp_directory": str(folder / "spill"),
            "preserve_insertion_order": False,
        },
    )
