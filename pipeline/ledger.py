"""What the staged parts hold: one row an id is kept, the others are counted.

Staging is at least once, so an id can stand in several parts. DuckDB keeps the
tables in a file beside them, so that memory stays bounded however long the
manifest is.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import duckdb

from pipeline.layout import TABLES, RunPaths
from pipeline.staging import staged_parts

_MEMORY_LIMIT = "1GB"

STAGED_PARTS = "read_parquet(?, filename='_part', file_row_number=true, hive_partitioning=false)"
"""Rows of staged files with their place. A carried column may be called `filename`."""


@dataclasses.dataclass(frozen=True)
class Ledger:
    """The frozen list of parts and what was found in them.

    Attributes:
      parts: Staged files by table, in order of their names.
      dropped: Row numbers not to publish, by staged file.
      counts: Rows kept, by table.
      reasons: Rejects kept, by reason code, most frequent first.
    """

    parts: dict[str, list[str]]
    dropped: dict[str, frozenset[int]]
    counts: dict[str, int]
    reasons: dict[str, int]

    @property
    def duplicates(self) -> int:
        """Number of rows that repeat an id and are not published."""
        return sum(len(rows) for rows in self.dropped.values())


def connect(folder: Path) -> duckdb.DuckDBPyConnection:
    """Returns a database in `folder` that spills there instead of filling memory."""
    folder.mkdir(parents=True, exist_ok=True)
    return duckdb.connect(
        folder / "ledger.duckdb",
        config={
            "memory_limit": _MEMORY_LIMIT,
            "temp_directory": str(folder / "spill"),
            "preserve_insertion_order": False,
        },
    )


def freeze_ledger(connection: duckdb.DuckDBPyConnection, paths: RunPaths) -> Ledger:
    """Lists the staged parts and decides which row of each id is kept.

    A scored row goes before a rejected one, then the part with the smallest name,
    then the first row. Leaves a table `kept(image_id, kind, part, number)` in
    `connection`, where `kind` is an index into `TABLES`.
    """
    parts = {table: staged_parts(paths.parts(table)) for table in TABLES}
    connection.execute(
        "CREATE OR REPLACE TABLE staged"
        " (image_id VARCHAR, kind TINYINT, part VARCHAR, number BIGINT)"
    )
    for kind, table in enumerate(TABLES):
        if parts[table]:
            connection.execute(
                "INSERT INTO staged SELECT image_id, ?, _part, file_row_number"
                f" FROM {STAGED_PARTS}",
                [kind, parts[table]],
            )
    connection.execute(
        "CREATE OR REPLACE TABLE ranked AS SELECT *, row_number() OVER"
        " (PARTITION BY image_id ORDER BY kind, part, number) AS copy FROM staged"
    )
    connection.execute("CREATE OR REPLACE VIEW kept AS SELECT * FROM ranked WHERE copy = 1")
    dropped = defaultdict(set)
    for part, number in connection.execute(
        "SELECT part, number FROM ranked WHERE copy > 1"
    ).fetchall():
        dropped[part].add(number)
    counted = dict(connection.execute("SELECT kind, count(*) FROM kept GROUP BY kind").fetchall())
    return Ledger(
        parts=parts,
        dropped={part: frozenset(numbers) for part, numbers in dropped.items()},
        counts={table: counted.get(kind, 0) for kind, table in enumerate(TABLES)},
        reasons=_count_reasons(connection, parts["rejects"]),
    )


def _count_reasons(connection: duckdb.DuckDBPyConnection, parts: Sequence[str]) -> dict[str, int]:
    if not parts:
        return {}
    return dict(
        connection.execute(
            "SELECT reason, count(*) AS images"
            f" FROM {STAGED_PARTS} r"
            " JOIN kept ON kept.part = r._part AND kept.number = r.file_row_number"
            " GROUP BY reason ORDER BY images DESC, reason",
            [list(parts)],
        ).fetchall()
    )
