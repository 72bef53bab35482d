"""Which rows go together, said by Python and by DuckDB alike."""

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.database import connect
from pipeline.elements import Shard
from pipeline.sharding import has_shards, in_shards, write_row_groups
from pipeline.uris import is_streamed, split_member
from tests.fakes import manifest_row

_PIECES = st.sampled_from(
    [".tar", ".tar.gz", ".tgz", "#", "a", "/", "gs://b/", ".png", "\n", ".TAR", "é", "S3+x.y-://"]
)


@settings(deadline=None)
@example("gs://b/a.tar#x")
@example("/a.tar#b.tgz#c")
@example("/a.tar.gz")
@given(st.lists(_PIECES, min_size=1, max_size=8).map("".join))
def test_query_and_python_agree_on_shards(uri):
    with duckdb.connect() as connection:
        connection.register("rows", pa.table({"uri": pa.array([uri], pa.string())}))
        assert has_shards(connection, "FROM rows", []) == is_streamed(uri)


def test_rows_of_an_archive_read_from_its_start_go_together():
    rows = [
        manifest_row("a", "/a.png"),
        manifest_row("b", "/x.tar.gz#1.png"),
        manifest_row("c", "/y.tgz#1.png"),
        manifest_row("d", "/plain.tar#1.png"),
        manifest_row("e", "/x.tar.gz#2.png"),
        manifest_row("f", "gs://b/plain.tar#1.png"),
    ]
    a, b, c, d, e, f = rows
    assert list(in_shards(rows)) == [
        a,
        d,
        Shard("/x.tar.gz", (b, e)),
        Shard("/y.tgz", (c,)),
        Shard("gs://b/plain.tar", (f,)),
    ]


@pytest.mark.parametrize("count", [1, 9, 5000])
def test_each_shard_is_one_row_group_after_the_others(tmp_path, count):
    uris = [f"/{'xyz'[k % 3]}.tar.gz#{k}.png" if k % 2 else f"/{k}.png" for k in range(count)]
    source = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"uri": uris, "number": range(count)}), source, row_group_size=1000)
    path = tmp_path / "sharded.parquet"
    with connect(tmp_path / "spill") as connection:
        groups = write_row_groups(
            connection,
            "FROM read_parquet(?)",
            [str(source)],
            columns=["uri", "number"],
            order="number",
            path=path,
            rows_a_group=100,
        )
    file = pq.ParquetFile(path)
    found = [file.read_row_group(group).to_pylist() for group in range(groups)]
    assert file.schema_arrow.names == ["uri", "number"]
    assert sorted(row["number"] for rows in found for row in rows) == list(range(count))
    shards = [rows for rows in found if is_streamed(rows[0]["uri"])]
    alone = [rows for rows in found if not is_streamed(rows[0]["uri"])]
    assert found == alone + shards
    assert [row["number"] for rows in alone for row in rows] == list(range(0, count, 2))
    assert {len(rows) for rows in alone[:-1]} <= {100}
    archives = [{split_member(row["uri"])[0] for row in rows} for rows in shards]
    assert all(len(names) == 1 for names in archives)
    assert len(set.union(set(), *archives)) == len(shards) == min(count // 2, 3)
