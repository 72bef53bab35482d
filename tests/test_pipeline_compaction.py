"""Compaction: the published files hold what was staged, without what was dropped."""

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import compaction
from pipeline.compaction import OutputFile, compact, plan_files, read_overlays, write_file
from pipeline.drawing import DRAWN_SCHEMA
from pipeline.layout import RunPaths
from pipeline.ledger import Ledger
from schemas.tables import REJECTS_SCHEMA, read_metadata, scores_schema, with_metadata
from tests.fakes import LOCAL, picture, read_rows, reject_of, scores_of, stage, tree

METADATA = {"run_id": "r1", "thresholds": {"Mass": 0.5}}
TABLE = with_metadata(REJECTS_SCHEMA, METADATA)


@pytest.fixture
def paths(tmp_path):
    return RunPaths(tmp_path / "out", "r1")


def ledger_of(parts, dropped=None):
    return Ledger({"rejects": parts}, dropped or {}, {}, {}, duplicates=0, outdated=0)


def stage_rejects(paths, *counts):
    """Stages parts of so many rows, numbered through."""
    numbers = iter(range(sum(counts)))
    return [
        stage(paths, "rejects", f"{k:04d}", [reject_of(f"i{next(numbers):04d}") for _ in range(n)])
        for k, n in enumerate(counts)
    ]


def ids_of(files):
    return [row["image_id"] for row in read_rows(files)]


def numbered(*numbers):
    return [f"i{number:04d}" for number in numbers]


# Which files


def test_plan_files_one_file_holds_all_parts_in_order(tmp_path, paths):
    parts = stage_rejects(paths, 3, 5, 1)
    dropped = {parts[1]: frozenset({0, 4}), "of another table": frozenset({1})}
    [file] = plan_files(tmp_path, parts, ledger_of(parts, dropped))
    expected = {parts[1]: frozenset({0, 4})}
    assert file == OutputFile(tmp_path / "part-00000.parquet", tuple(parts), expected)


def test_plan_files_a_full_file_is_followed_by_another(tmp_path, paths, monkeypatch):
    monkeypatch.setattr(compaction, "_ROWS_A_FILE", 5)
    parts = stage_rejects(paths, 3, 3, 5, 1, 1)
    dropped = {parts[0]: frozenset({1}), parts[4]: frozenset({0})}
    assert plan_files(tmp_path, parts, ledger_of(parts, dropped)) == [
        OutputFile(tmp_path / "part-00000.parquet", tuple(parts[:2]), {parts[0]: frozenset({1})}),
        OutputFile(tmp_path / "part-00001.parquet", tuple(parts[2:3]), {}),
        OutputFile(tmp_path / "part-00002.parquet", tuple(parts[3:]), {parts[4]: frozenset({0})}),
    ]


def test_plan_files_no_part_gives_one_empty_file(tmp_path):
    expected = OutputFile(tmp_path / "part-00000.parquet", (), {})
    assert plan_files(tmp_path, [], ledger_of([])) == [expected]


# What is in a file


def test_write_file_holds_the_rows_but_those_dropped_in_order(tmp_path, paths):
    parts = stage_rejects(paths, 3, 2, 4)
    dropped = {parts[0]: frozenset({1}), parts[1]: frozenset({0, 1}), parts[2]: frozenset({0, 3})}
    path = tmp_path / "a.parquet"
    write_file(OutputFile(path, tuple(parts), dropped), TABLE, {})
    expected = [row for row in read_rows(parts) if row["image_id"] in numbered(0, 2, 6, 7)]
    assert read_rows([path]) == expected
    assert ids_of([path]) == numbered(0, 2, 6, 7)


@pytest.mark.parametrize("carried", [(), ("patient_id", "site")], ids=["plain", "carried"])
def test_write_file_has_the_exact_schema_and_metadata(tmp_path, paths, carried):
    schema = scores_schema(carried)
    row = scores_of("a", picture(200), **dict.fromkeys(carried, "x"))
    part = stage(paths, "scores", "1", [row], carried)
    path = tmp_path / "a.parquet"
    write_file(OutputFile(path, (part,), {}), with_metadata(schema, METADATA), {})
    written = pq.read_schema(path)
    assert written.remove_metadata().equals(schema)
    assert list(written.metadata) == [b"prescreen"]
    assert read_metadata(written) == METADATA
    assert pq.read_metadata(path).row_group(0).column(0).compression == "ZSTD"


def test_write_file_row_groups_are_never_larger_than_allowed(tmp_path, paths, monkeypatch):
    monkeypatch.setattr(compaction, "ROWS_A_GROUP", 7)
    monkeypatch.setattr(compaction, "_ROWS_AT_ONCE", 10)
    parts = stage_rejects(paths, 4, 30, 1, 1)
    path = tmp_path / "a.parquet"
    write_file(OutputFile(path, tuple(parts), {parts[1]: frozenset({3})}), TABLE, {})
    metadata = pq.read_metadata(path)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert max(sizes) <= 7 and sum(sizes) == 35
    assert ids_of([path]) == [name for name in numbered(*range(36)) if name != "i0007"]


def test_write_file_default_row_groups_are_64k():
    assert compaction.ROWS_A_GROUP == 65536


@pytest.mark.parametrize(
    "schema", [REJECTS_SCHEMA, scores_schema(("site",))], ids=["rejects", "scores"]
)
def test_write_file_nothing_to_hold_is_a_readable_file_of_0_rows(tmp_path, schema):
    path = tmp_path / "a.parquet"
    write_file(OutputFile(path, (), {}), with_metadata(schema, METADATA), {})
    table = pq.ParquetFile(path).read()
    assert table.num_rows == 0
    assert table.schema.remove_metadata().equals(schema)
    assert read_metadata(table.schema) == METADATA


def test_write_file_all_rows_dropped_is_a_file_of_0_rows(tmp_path, paths):
    parts = stage_rejects(paths, 2)
    path = tmp_path / "a.parquet"
    write_file(OutputFile(path, tuple(parts), {parts[0]: frozenset({0, 1})}), TABLE, {})
    assert read_rows([path]) == []


def test_write_file_again_gives_the_same_bytes(tmp_path, paths):
    rows = [scores_of(f"i{k}", picture(20 * k)) for k in range(12)]
    file = OutputFile(tmp_path / "a.parquet", (stage(paths, "scores", "1", rows),), {})
    schema = with_metadata(scores_schema(), METADATA)
    digests = set()
    for _ in range(2):
        write_file(file, schema, {"i11": {"Mass": "gradcam/x.jpg"}})
        digests.add(hashlib.sha256(file.path.read_bytes()).hexdigest())
    assert len(digests) == 1


# Overlays


def test_write_file_overlays_stand_where_one_was_drawn_and_nowhere_else(tmp_path, paths):
    high = {"Mass": 250, "Edema": 240, "Hernia": 230}
    rows = [scores_of(name, picture(high)) for name in "abc"] + [scores_of("d", picture(0))]
    part = stage(paths, "scores", "1", rows)
    path = tmp_path / "a.parquet"
    overlays = {
        "a": {"Edema": "gradcam/a.Edema.jpg"},
        "c": {"Mass": "c.Mass", "Hernia": "c.Hernia"},
    }
    write_file(OutputFile(path, (part,), {}), with_metadata(scores_schema(), METADATA), overlays)
    expected = pa.Table.from_pylist(rows, scores_schema()).to_pylist()
    expected[0]["cams"][1]["overlay"] = "gradcam/a.Edema.jpg"
    expected[2]["cams"][0]["overlay"] = "c.Mass"
    expected[2]["cams"][2]["overlay"] = "c.Hernia"
    assert [cam["finding"] for cam in expected[0]["cams"]] == ["Mass", "Edema", "Hernia"]
    assert read_rows([path]) == expected


def test_read_overlays_takes_what_was_drawn_and_not_what_failed(tmp_path):
    rows = [
        {"image_id": "a", "finding": "Mass", "overlay": "a.Mass", "reason": None},
        {"image_id": "a", "finding": "Edema", "overlay": None, "reason": "no_attention"},
        {"image_id": "b", "finding": "Mass", "overlay": None, "reason": "not_found"},
        {"image_id": "c", "finding": "Hernia", "overlay": "c.Hernia", "reason": None},
    ]
    for name, part in (("1", rows[:2]), ("2", rows[2:])):
        pq.write_table(pa.Table.from_pylist(part, DRAWN_SCHEMA), tmp_path / f"{name}.parquet")
    assert read_overlays(tmp_path) == {"a": {"Mass": "a.Mass"}, "c": {"Hernia": "c.Hernia"}}
    assert read_overlays(tmp_path / "nothing_drawn") == {}


# On a runner


def test_compact_writes_every_file_with_all_rows_between_them(tmp_path, paths, monkeypatch):
    monkeypatch.setattr(compaction, "_ROWS_A_FILE", 10)
    rows = [scores_of(f"i{k:04d}", picture({"Mass": 4 * k})) for k in range(60)]
    parts = [stage(paths, "scores", f"{k}", rows[k : k + 6]) for k in range(0, 60, 6)]
    dropped = {parts[0]: frozenset({5}), parts[9]: frozenset({0, 1})}
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    overlay = {"image_id": "i0040", "finding": "Mass", "overlay": "gradcam/x.jpg", "reason": None}
    pq.write_table(pa.Table.from_pylist([overlay], DRAWN_SCHEMA), drawn / "1.parquet")
    folder = tmp_path / "built"
    files = plan_files(folder, parts, ledger_of(parts, dropped))
    compact(files, with_metadata(scores_schema(), METADATA), drawn, LOCAL)
    assert tree(folder) == [f"part-{number:05d}.parquet" for number in range(5)]
    expected = pa.Table.from_pylist(rows, scores_schema()).to_pylist()
    expected[40]["cams"][0]["overlay"] = "gradcam/x.jpg"
    gone = {"i0005", "i0054", "i0055"}
    kept = [row for row in expected if row["image_id"] not in gone]
    assert read_rows(sorted(folder.iterdir())) == kept
