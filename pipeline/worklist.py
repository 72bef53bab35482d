"""The worklist: flagged images, most abnormal or most urgent first."""

import csv
import dataclasses
import glob
from collections.abc import Mapping
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from model.thresholds import Thresholds
from pipeline.quality import is_gated
from schemas.findings import FINDINGS, score_column
from schemas.tables import WORKLIST_SCHEMA, with_metadata

_ROWS_AT_ONCE = 16 * 1024


@dataclasses.dataclass(frozen=True)
class Ranking:
    """How flagged images are ranked, and how many of them are listed.

    Attributes:
      limit: Most images listed.
      urgency: Tier of each of the 14 findings, 1 for the most urgent.
      urgent_first: Whether the tier decides before abnormality does.
      gated_last: Whether images whose scores are not to be believed rank behind all others.
    """

    limit: int
    urgency: Mapping[str, int]
    urgent_first: bool = False
    gated_last: bool = True


def write_worklist(
    connection: duckdb.DuckDBPyConnection,
    scores: list[str],
    thresholds: Thresholds,
    ranking: Ranking,
    folder: Path,
    name: str,
    metadata: dict,
) -> None:
    """Writes the worklist as CSV and Parquet; in the CSV `|` joins what are lists.

    Args:
      connection: Sorts, and spills where memory is short.
      scores: The scores table as it will be published.
      thresholds: Those of the run.
      ranking: In which order, and how many.
      folder: New; both files go there.
      name: Of the files, without extension.
      metadata: Stored in the Parquet file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # No MAP: one of columns is made anew for each row, which takes 40 times as long.
    score_of = " ".join(f"WHEN '{f}' THEN \"{score_column(f)}\"" for f in FINDINGS)
    threshold_of = ", ".join(f"'{f}': {thresholds[f].threshold!r}::DOUBLE" for f in thresholds)
    tier_of = ", ".join(f"'{f}': {tier}" for f, tier in ranking.urgency.items())
    gated = is_gated(ranking.gated_last)
    order = "urgency, abnormality DESC" if ranking.urgent_first else "abnormality DESC"
    reader = connection.sql(
        "SELECT image_id, abnormality,"
        f" list_min(list_transform(findings, lambda _name: MAP {{{tier_of}}}[_name])) AS urgency,"
        " findings,"
        f" list_transform(findings, lambda _name: CASE _name {score_of} END) AS scores,"
        f" list_transform(findings, lambda _name: MAP {{{threshold_of}}}[_name]) AS thresholds,"
        " list_transform(cams, lambda _cam: _cam.overlay) AS overlays, uri,"
        f" quality, {gated} AS gated"
        " FROM read_parquet(?, hive_partitioning=false) WHERE flagged"
        f" ORDER BY gated, {order}, image_id LIMIT ?",
        params=[scores, ranking.limit],
    ).to_arrow_reader(_ROWS_AT_ONCE)
    schema = with_metadata(WORKLIST_SCHEMA, metadata)
    with (
        open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file,
        pq.ParquetWriter(folder / f"{name}.parquet", schema, compression="zstd") as parquet,
        duckdb.connect() as texts,
    ):
        rows = csv.writer(file)
        rows.writerow(schema.names)
        listed = 0
        for batch in reader:
            # Counted here: a window function would hold every row twice to number them.
            ranks = pa.array(range(listed + 1, listed + len(batch) + 1))
            listed += len(batch)
            table = pa.Table.from_batches([batch]).add_column(0, "rank", ranks).cast(schema)
            parquet.write_table(table)
            # Not by Python: with a million rows that would take longer than all else.
            texts.register("listed", table)
            rows.writerows(texts.execute(f"SELECT {_CELLS} FROM listed").fetchall())


def _cell(field: pa.Field) -> str:
    """Returns SQL for a column's text in the CSV."""
    if pa.types.is_list(field.type):
        item = _text("_item", field.type.value_type)
        return f"array_to_string(list_transform({field.name}, lambda _item: {item}), '|')"
    return _text(field.name, field.type)


def _text(value: str, kind: pa.DataType) -> str:
    if pa.types.is_floating(kind):
        return f"printf('%.6f', {value}::DOUBLE)"
    return f"coalesce({value}::VARCHAR, '')"


_CELLS = ", ".join(map(_cell, WORKLIST_SCHEMA))


def captured_findings(
    connection: duckdb.DuckDBPyConnection, scores: list[str], worklist: Path
) -> dict[str, dict[str, int]]:
    """Returns of each flagged finding how many images have it, and how many of these are listed.

    Args:
      connection: Counts.
      scores: The scores table as it will be published.
      worklist: The Parquet file of `write_worklist`.
    """
    counts = "(SELECT unnest(findings) AS finding FROM read_parquet(?, hive_partitioning=false))"
    rows = connection.execute(
        "SELECT finding, count(*) FILTER (flagged), count(*) FILTER (NOT flagged) FROM"
        f" (SELECT finding, true AS flagged FROM {counts}"
        f"  UNION ALL SELECT finding, false FROM {counts})"
        " GROUP BY finding ORDER BY finding",
        [scores, glob.escape(str(worklist))],
    ).fetchall()
    return {finding: {"flagged": flagged, "listed": listed} for finding, flagged, listed in rows}
