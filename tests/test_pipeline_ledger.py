"""The ledger: which row of each id is kept, whatever was staged twice."""

import dataclasses
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.database import connect
from pipeline.layout import RunPaths
from pipeline.ledger import freeze_ledger
from pipeline.manifest import CheckedManifest
from pipeline.planning import HELD_SCHEMA, WorkPlan
from schemas.rejects import Reason
from tests.fakes import read_rows, reject_of, scores_of, stage

FIRST_ATTEMPT = WorkPlan(CheckedManifest("manifest.parquet", 1, 1, ()))
"""There is no earlier attempt whose rows might not count."""


@pytest.fixture
def paths(tmp_path):
    return RunPaths(tmp_path / "out", "r1")


def freeze(paths, plan=FIRST_ATTEMPT):
    with connect(paths.commit) as connection:
        ledger = freeze_ledger(connection, paths, plan)
        kept = connection.execute("SELECT image_id, kind, part, number FROM kept").fetchall()
    return ledger, sorted(kept)


def kept_ids(ledger, table):
    """Returns the ids that are left of a table, read from its parts, in order."""
    return [
        row["image_id"]
        for part in ledger.parts[table]
        for number, row in enumerate(read_rows([part]))
        if number not in ledger.dropped.get(part, ())
    ]


def test_freeze_ledger_each_id_once_keeps_everything(paths):
    first = stage(paths, "scores", "1", [scores_of("a"), scores_of("b")])
    second = stage(paths, "scores", "2", [scores_of("c")])
    third = stage(paths, "rejects", "1", [reject_of("d", Reason.TRUNCATED)])
    ledger, kept = freeze(paths)
    assert ledger.parts == {"scores": [first, second], "rejects": [third]}
    assert (ledger.dropped, ledger.duplicates) == ({}, 0)
    assert ledger.counts == {"scores": 3, "rejects": 1}
    assert ledger.reasons == {"truncated": 1}
    expected = [("a", 0, first, 0), ("b", 0, first, 1), ("c", 0, second, 0), ("d", 1, third, 0)]
    assert kept == expected


def test_freeze_ledger_id_in_several_parts_keeps_the_smallest_name(paths):
    late = stage(paths, "scores", "0002", [scores_of("a"), scores_of("b")])
    early = stage(paths, "scores", "0001", [scores_of("c"), scores_of("a")])
    last = stage(paths, "scores", "0003", [scores_of("a"), scores_of("c")])
    ledger, _ = freeze(paths)
    assert ledger.parts["scores"] == [early, late, last]
    assert ledger.dropped == {late: {0}, last: {0, 1}}
    assert ledger.duplicates == 3
    assert ledger.counts == {"scores": 3, "rejects": 0}


def test_freeze_ledger_id_twice_in_a_part_keeps_the_first_row(paths):
    part = stage(paths, "scores", "1", [scores_of(name) for name in "abaab"])
    ledger, _ = freeze(paths)
    assert ledger.dropped == {part: {2, 3, 4}}
    assert ledger.counts == {"scores": 2, "rejects": 0}


def test_freeze_ledger_scored_goes_before_rejected_even_from_a_later_part(paths):
    rejects = stage(paths, "rejects", "0001", [reject_of("a"), reject_of("b", Reason.NOT_FOUND)])
    stage(paths, "scores", "0002", [scores_of("a")])
    ledger, _ = freeze(paths)
    assert ledger.dropped == {rejects: {0}}
    assert ledger.counts == {"scores": 1, "rejects": 1}
    assert ledger.reasons == {"not_found": 1}


def test_freeze_ledger_reasons_are_of_kept_rejects_most_frequent_first(paths):
    reasons = [
        Reason.CORRUPT,
        Reason.NOT_FOUND,
        Reason.TRUNCATED,
        Reason.NOT_FOUND,
        Reason.ANIMATED,
    ]
    stage(paths, "rejects", "1", [reject_of(f"i{k}", why) for k, why in enumerate(reasons)])
    # All of them again: a second count of each would change the order.
    stage(paths, "rejects", "2", [reject_of("i0", Reason.CORRUPT) for _ in range(5)])
    ledger, _ = freeze(paths)
    expected = [("not_found", 2), ("animated", 1), ("corrupt", 1), ("truncated", 1)]
    assert list(ledger.reasons.items()) == expected


def test_freeze_ledger_reason_of_an_id_rejected_twice_is_the_first_parts(paths):
    stage(paths, "rejects", "2", [reject_of("a", Reason.CORRUPT)])
    stage(paths, "rejects", "1", [reject_of("a", Reason.NOT_FOUND)])
    assert freeze(paths)[0].reasons == {"not_found": 1}


def test_freeze_ledger_nothing_staged_is_empty(paths):
    ledger, kept = freeze(paths)
    assert ledger.parts == {"scores": [], "rejects": []}
    assert (ledger.dropped, ledger.reasons, kept) == ({}, {}, [])
    assert ledger.counts == {"scores": 0, "rejects": 0}


@pytest.mark.parametrize(
    "folder", ["image_id=7", "part[1]", "a*b", "it's", "é"], ids=lambda name: name
)
def test_freeze_ledger_output_folder_of_any_name_is_taken_literally(tmp_path, folder):
    paths = RunPaths(tmp_path / folder, "r1")
    first = stage(paths, "scores", "1", [scores_of("a"), scores_of("b")])
    second = stage(paths, "scores", "2", [scores_of("b")])
    ledger, kept = freeze(paths)
    assert ledger.dropped == {second: {0}}
    assert kept == [("a", 0, first, 0), ("b", 0, first, 1)]


def test_freeze_ledger_ids_are_compared_to_the_letter(paths):
    names = ["a", "A", "a ", "é", "e\u0301", "'", "", "1", "01", "NULL", "a\nb"]
    stage(paths, "scores", "1", [scores_of(name) for name in names])
    ledger, _ = freeze(paths)
    assert (ledger.dropped, ledger.counts["scores"]) == ({}, len(names))


def test_freeze_ledger_frozen_again_gives_the_same(paths):
    stage(paths, "scores", "1", [scores_of("a"), scores_of("a")])
    stage(paths, "rejects", "1", [reject_of("a"), reject_of("b")])
    with connect(paths.commit) as connection:
        assert freeze_ledger(connection, paths, FIRST_ATTEMPT) == freeze_ledger(
            connection, paths, FIRST_ATTEMPT
        )


_ROW = scores_of("")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["scores", "rejects"]), st.lists(st.integers(0, 6), min_size=1)),
        max_size=8,
    )
)
def test_freeze_ledger_any_staging_keeps_one_row_an_id(staged):
    with tempfile.TemporaryDirectory() as folder:
        paths = RunPaths(Path(folder), "r1")
        for number, (table, ids) in enumerate(staged):
            make = reject_of if table == "rejects" else lambda name: {**_ROW, "image_id": name}
            stage(paths, table, str(number), [make(f"i{k}") for k in ids])
        ledger, _ = freeze(paths)
        kept = {table: Counter(kept_ids(ledger, table)) for table in ("scores", "rejects")}
    scored = {f"i{k}" for table, ids in staged if table == "scores" for k in ids}
    rejected = {f"i{k}" for table, ids in staged if table == "rejects" for k in ids} - scored
    assert kept == {"scores": Counter(scored), "rejects": Counter(rejected)}
    assert ledger.counts == {"scores": len(scored), "rejects": len(rejected)}
    total = sum(len(ids) for _, ids in staged)
    assert ledger.duplicates == total - len(scored) - len(rejected)
    assert sum(ledger.reasons.values()) == len(rejected)


# Rows of earlier attempts


def held_plan(paths, earlier, held):
    """Returns a plan by which earlier parts count for the ids, sizes and versions held."""
    rows = [dict(zip(HELD_SCHEMA.names, row, strict=True)) for row in held]
    paths.plan.mkdir(parents=True)
    path = str(paths.plan / "held-000000.parquet")
    pq.write_table(pa.Table.from_pylist(rows, HELD_SCHEMA), path)
    return dataclasses.replace(FIRST_ATTEMPT, held=(path,), earlier=frozenset(earlier))


def test_freeze_ledger_earlier_rows_count_only_where_the_file_is_unchanged(paths):
    def versioned(image_id, version):
        return scores_of(image_id, size_bytes=9, source_version=version)

    old = stage(
        paths, "scores", "1", [versioned("a", "1"), versioned("b", "1"), versioned("c", "1")]
    )
    new = stage(paths, "scores", "2", [versioned("b", "2")])
    plan = held_plan(paths, [old], [("a", "r1", 9, "1"), ("b", "r1", 9, "2"), ("c", "r0", 9, "1")])
    ledger, kept = freeze(paths, plan)
    assert kept == [("a", 0, old, 0), ("b", 0, new, 0)]
    assert ledger.dropped == {old: {1, 2}}
    assert (ledger.duplicates, ledger.outdated) == (0, 2)


def test_freeze_ledger_new_reject_goes_before_an_outdated_score(paths):
    old = stage(paths, "scores", "1", [scores_of("a")])
    new = stage(paths, "rejects", "2", [reject_of("a")])
    ledger, kept = freeze(paths, held_plan(paths, [old], []))
    assert kept == [("a", 1, new, 0)]
    assert ledger.reasons == {"corrupt": 1} and ledger.outdated == 1


def test_freeze_ledger_earlier_reject_without_a_file_counts_where_it_is_held(paths):
    gone = {**reject_of("a", Reason.NOT_FOUND), "size_bytes": None, "source_version": None}
    old = stage(paths, "rejects", "1", [gone])
    _, kept = freeze(paths, held_plan(paths, [old], [("a", "r1", None, None)]))
    assert kept == [("a", 1, old, 0)]


def test_freeze_ledger_earlier_row_staged_twice_is_a_duplicate_and_not_outdated(paths):
    row = scores_of("a", size_bytes=9, source_version="1")
    old = [stage(paths, "scores", name, [row]) for name in "12"]
    ledger, kept = freeze(paths, held_plan(paths, old, [("a", "r1", 9, "1")]))
    assert kept == [("a", 0, old[0], 0)]
    assert (ledger.duplicates, ledger.outdated) == (1, 0)
