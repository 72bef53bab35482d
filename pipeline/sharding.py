"""Which images are read together: those in one archive that is read from its start."""

import collections
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.elements import Shard
from pipeline.uris import is_streamed, split_member

_ARCHIVE = r"regexp_extract(uri, '(?is)^(.*?\.(?:tar\.gz|tgz|tar))#', 1)"
SHARD = (
    f"CASE WHEN {_ARCHIVE} <> '' AND (NOT suffix(lower({_ARCHIVE}), '.tar')"
    f" OR regexp_matches({_ARCHIVE}, '^[A-Za-z][A-Za-z0-9+.-]*://')) THEN {_ARCHIVE} END"
)
"""The archive of a uri that `pipeline.uris.is_streamed`, in DuckDB's SQL; else NULL."""


class HasUri(Protocol):
    """A row of any kind that names an image and says where it is."""

    image_id: str
    uri: str


def in_shards(rows: Iterable[HasUri]) -> Iterator[HasUri | Shard]:
    """Gives rows as they are, but those of an archive that is read from its start together."""
    shards = collections.defaultdict(list)
    for row in rows:
        if is_streamed(row.uri):
            shards[split_member(row.uri)[0]].append(row)
        else:
            yield row
    for archive, found in shards.items():
        yield Shard(archive, tuple(found))


def has_shards(connection: duckdb.DuckDBPyConnection, query: str, params: list) -> bool:
    """Returns whether any row of a query lies in an archive that is read from its start."""
    [(found,)] = connection.execute(
        f"SELECT EXISTS (SELECT 1 FROM ({query}) WHERE {SHARD} IS NOT NULL)", params
    ).fetchall()
    return found


def write_row_groups(
    connection: duckdb.DuckDBPyConnection,
    query: str,
    params: list,
    *,
    columns: Sequence[str],
    order: str,
    path: Path,
    rows_a_group: int,
) -> int:
    """Writes rows as Parquet, each shard as a row group of its own after all other rows.

    Args:
      connection: To query.
      query: SQL whose rows have a `uri`.
      params: Of it.
      columns: What to write of each row.
      order: SQL by which the rows outside shards are sorted.
      path: To write.
      rows_a_group: Rows of each row group outside shards; the last may have fewer.

    Returns:
      The number of row groups.
    """
    listed = ", ".join(f'"{name}"' for name in columns)
    alone = connection.sql(
        f"SELECT {listed} FROM ({query}) WHERE {SHARD} IS NULL ORDER BY {order}", params=params
    ).to_arrow_reader(rows_a_group)
    with pq.ParquetWriter(path, alone.schema, compression="zstd") as writer:
        for batch in alone:
            writer.write_batch(batch, row_group_size=rows_a_group)
        sharded = connection.sql(
            f"SELECT {listed}, {SHARD} AS _shard FROM ({query})"
            " WHERE _shard IS NOT NULL ORDER BY _shard",
            params=params,
        ).to_arrow_reader(rows_a_group)
        for shard in _shards(sharded):
            writer.write_table(shard.select(columns), row_group_size=len(shard))
    return pq.read_metadata(path).num_row_groups


def _shards(rows: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """Gives the rows of each shard from rows sorted by `_shard`."""
    pieces = (piece for batch in rows for piece in _runs(pa.Table.from_batches([batch])))
    for _, run in itertools.groupby(pieces, lambda piece: piece["_shard"][0].as_py()):
        yield pa.concat_tables(run)


def _runs(table: pa.Table) -> Iterator[pa.Table]:
    """Gives slices of a table, one for each run of rows of the same shard."""
    start = 0
    for _, run in itertools.groupby(table["_shard"].to_pylist()):
        length = len(list(run))
        yield table.slice(start, length)
        start += length
