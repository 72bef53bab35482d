"""What the staged parts hold: one row an id is kept, the others are counted.

Staging is at least once, so an id can stand in several parts. DuckDB keeps the
tables in a file beside them, so that memory stays bounded however long the
manifest is.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import duckdb

from pipeline.database import STAGED_PARTS
from pipeline.layout import TABLES, RunPaths, staged_parts
from pipeline.planning import WorkPlan


@dataclasses.dataclass(frozen=True)
class Ledger:
    """The frozen list of parts and what was found in them.

    Attributes:
      parts: Staged files by table, in order of their names.
      dropped: Row numbers not to publish, by staged file.
      counts: Rows kept, by table.
      reasons: Rejects kept, by reason code, most frequent first.
      duplicates: Number of rows that repeat an id and are not published.
      outdated: Number of rows of earlier attempts that do not count: their file has
        changed, is in the manifest no more, or was tried again.
    """

    parts: dict[str, list[str]]
    dropped: dict[str, frozenset[int]]
    counts: dict[str, int]
    reasons: dict[str, int]
    duplicates: int
    outdated: int


def freeze_ledger(connection: duckdb.DuckDBPyConnection, paths: RunPaths, plan: WorkPlan) -> Ledger:
    """Lists the staged parts and decides which row of each id is kept.

    A row of an earlier attempt counts only if the plan says that it holds. A scored
    row goes before a rejected one, then the part with the smallest name, then the
    first row. Leaves a table `kept(image_id, kind, part, number)` in `connection`,
    where `kind` is an index into `TABLES`.
    """
    parts = {table: staged_parts(paths.parts(table)) for table in TABLES}
    _collect_staged(connection, parts, plan, paths.run_id)
    connection.execute(
        "CREATE OR REPLACE TABLE ranked AS SELECT *, row_number() OVER"
        " (PARTITION BY image_id ORDER BY is_outdated, kind, part, number) AS copy FROM staged"
    )
    connection.execute(
        "CREATE OR REPLACE VIEW kept AS SELECT * FROM ranked WHERE copy = 1 AND NOT is_outdated"
    )
    dropped, outdated = defaultdict(set), 0
    for part, number, is_outdated in connection.execute(
        "SELECT part, number, is_outdated FROM ranked WHERE copy > 1 OR is_outdated"
    ).fetchall():
        dropped[part].add(number)
        outdated += is_outdated
    counted = dict(connection.execute("SELECT kind, count(*) FROM kept GROUP BY kind").fetchall())
    return Ledger(
        parts=parts,
        dropped={part: frozenset(numbers) for part, numbers in dropped.items()},
        counts={table: counted.get(kind, 0) for kind, table in enumerate(TABLES)},
        reasons=_count_reasons(connection, parts["rejects"]),
        duplicates=sum(map(len, dropped.values())) - outdated,
        outdated=outdated,
    )


def _collect_staged(
    connection: duckdb.DuckDBPyConnection,
    parts: dict[str, list[str]],
    plan: WorkPlan,
    run_id: str,
) -> None:
    """Leaves a table `staged` of all rows, and whether each is outdated."""
    connection.execute(
        "CREATE OR REPLACE TABLE staged (image_id VARCHAR, kind TINYINT, part VARCHAR,"
        " number BIGINT, is_outdated BOOLEAN)"
    )
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE confirmed"
        " (image_id VARCHAR, size_bytes BIGINT, source_version VARCHAR)"
    )
    if plan.held:
        connection.execute(
            "INSERT INTO confirmed SELECT image_id, size_bytes, source_version"
            " FROM read_parquet(?, hive_partitioning=false) WHERE held_by_run = ?",
            [list(plan.held), run_id],
        )
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE earlier AS SELECT unnest(?::VARCHAR[]) AS part",
        [sorted(plan.earlier)],
    )
    for kind, table in enumerate(TABLES):
        if parts[table]:
            connection.execute(
                "INSERT INTO staged SELECT image_id, ?, _part, file_row_number,"
                " _part IN (SELECT part FROM earlier) AND NOT EXISTS (FROM confirmed c"
                "  WHERE c.image_id = s.image_id"
                "  AND c.size_bytes IS NOT DISTINCT FROM s.size_bytes"
                "  AND c.source_version IS NOT DISTINCT FROM s.source_version)"
                f" FROM {STAGED_PARTS} s",
                [kind, parts[table]],
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
