"""Staged parts: when one is written, what it holds, and what is never taken for one."""

import errno
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam import Create

from pipeline import layout, staging
from pipeline.layout import staged_parts, write_atomically
from pipeline.progress import PROGRESS
from pipeline.staging import ROWS_A_PART, StageRows, StageRowsDoFn
from schemas.rejects import Reason
from schemas.tables import REJECTS_SCHEMA, scores_schema
from tests.fakes import LOCAL, picture, read_rows, reject_of, scores_of, tree

SCHEMA = pa.schema([("image_id", pa.string()), ("number", pa.int32())])


class Clock:
    """Stands in for the module `time`; only moves when told to."""

    now_s = 1000.0

    def monotonic(self):
        return self.now_s

    def time_ns(self):
        return round(self.now_s * 1e9)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(staging, "time", clock)
    return clock


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "_staging" / "r1" / "scores"


@pytest.fixture
def dofn(folder):
    """A DoFn at the start of a bundle."""
    dofn = StageRowsDoFn(str(folder), SCHEMA)
    dofn.setup()
    dofn.start_bundle()
    return dofn


def rows_of(numbers):
    return [{"image_id": f"i{number}", "number": number} for number in numbers]


def process(dofn, numbers):
    for row in rows_of(numbers):
        assert not dofn.process(row)


def staged(folder):
    """Returns the numbers in each complete part, by the parts' names."""
    return [[row["number"] for row in read_rows([part])] for part in staged_parts(folder)]


# When a part is written


def test_stage_rows_512_rows_are_written_at_once_and_the_next_wait(dofn, folder, clock):
    assert ROWS_A_PART == 512
    process(dofn, range(511))
    assert staged(folder) == []
    process(dofn, [511])
    assert staged(folder) == [list(range(512))]
    clock.now_s += 1
    process(dofn, range(512, 1026))
    assert staged(folder) == [list(range(512)), list(range(512, 1024))]
    clock.now_s += 1
    dofn.finish_bundle()
    assert staged(folder) == [list(range(512)), list(range(512, 1024)), [1024, 1025]]


def test_stage_rows_30_seconds_after_the_first_row_the_next_brings_them_to_disk(
    dofn, folder, clock
):
    clock.now_s += 1000
    process(dofn, [1])
    clock.now_s += 29.5
    process(dofn, [2])
    assert staged(folder) == []
    clock.now_s += 0.5
    process(dofn, [3])
    assert staged(folder) == [[1, 2, 3]]
    clock.now_s += 29.5
    process(dofn, [4])
    clock.now_s += 29.5
    process(dofn, [5])
    assert staged(folder) == [[1, 2, 3]]


def test_stage_rows_end_of_bundle_writes_what_is_left_once(dofn, folder):
    process(dofn, [1, 2])
    dofn.finish_bundle()
    dofn.start_bundle()
    dofn.finish_bundle()
    assert staged(folder) == [[1, 2]]


def test_stage_rows_empty_bundle_writes_no_file(dofn, folder):
    dofn.finish_bundle()
    assert tree(folder) == []


def test_stage_rows_retried_bundle_adds_a_part_and_overwrites_none(dofn, folder, clock):
    process(dofn, [1, 2])
    dofn.finish_bundle()
    dofn.start_bundle()
    process(dofn, [1, 2])
    dofn.finish_bundle()
    assert staged(folder) == [[1, 2], [1, 2]]


def test_stage_rows_bundle_given_up_leaves_no_row_to_the_next(dofn, folder):
    process(dofn, [1, 2])
    dofn.start_bundle()
    process(dofn, [3])
    dofn.finish_bundle()
    assert staged(folder) == [[3]]


# What it holds


def test_stage_rows_part_has_the_schema_and_is_compressed(tmp_path):
    dofn = StageRowsDoFn(str(tmp_path), scores_schema(("site",)))
    dofn.setup()
    dofn.start_bundle()
    rows = [
        scores_of("a", picture({"Mass": 200, "Edema": 180}), site="north"),
        scores_of("b", picture(0), site=None),
    ]
    for row in rows:
        dofn.process(row)
    dofn.finish_bundle()
    [part] = staged_parts(tmp_path)
    assert pq.read_schema(part).equals(scores_schema(("site",)))
    assert pq.read_metadata(part).row_group(0).column(0).compression == "ZSTD"
    expected = pa.Table.from_pylist(rows, scores_schema(("site",))).to_pylist()
    assert read_rows([part]) == expected
    assert expected[0]["findings"] == ["Mass", "Edema"] and expected[1]["cams"] == []


def test_stage_rows_in_a_pipeline_stages_every_row_once(tmp_path):
    PROGRESS.reset()
    rows = [reject_of(f"i{number}", Reason.TRUNCATED) for number in range(1100)]
    folder = tmp_path / "rejects"
    LOCAL.run(
        lambda pipeline: (
            pipeline | Create(rows, reshuffle=False) | StageRows(str(folder), REJECTS_SCHEMA)
        )
    )
    parts = staged_parts(folder)
    assert [pq.read_metadata(part).num_rows for part in parts] == [512, 512, 76]
    assert read_rows(parts) == rows
    assert PROGRESS.counts() == {"rejects": 1100}
    PROGRESS.reset()
    assert PROGRESS.counts() == {}


# What is no part


def test_staged_parts_are_the_visible_parquet_files_by_name(folder):
    folder.mkdir(parents=True)
    for name in (
        "2.parquet",
        "10.parquet",
        ".1.parquet",
        ".3.parquet.tmp",
        "4.parquet.tmp",
        "5.csv",
    ):
        (folder / name).touch()
    assert staged_parts(folder) == [str(folder / "10.parquet"), str(folder / "2.parquet")]


def test_staged_parts_no_folder_gives_none(folder):
    assert staged_parts(folder) == []


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_stage_rows_disk_full_gives_an_error_and_no_part(dofn, folder, monkeypatch, step):
    process(dofn, [1, 2])
    monkeypatch.setattr(layout.os, step, full_disk)
    with pytest.raises(OSError, match="No space left"):
        dofn.finish_bundle()
    monkeypatch.undo()
    assert staged_parts(folder) == []


def test_stage_rows_value_of_the_wrong_type_gives_an_error_and_no_file(dofn, folder):
    dofn.process({"image_id": "a", "number": "seven"})
    with pytest.raises(pa.ArrowInvalid, match="seven"):
        dofn.finish_bundle()
    assert tree(folder) == []


# The one way in which files are written


def test_write_atomically_replaces_the_whole_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "record.json"
    write_atomically(path, b"a long first version")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert tree(tmp_path) == ["record.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_write_atomically_fails_the_old_file_stays(tmp_path, monkeypatch, step):
    path = tmp_path / "record.json"
    path.write_bytes(b"first")
    monkeypatch.setattr(layout.os, step, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"second")
    monkeypatch.undo()
    assert path.read_bytes() == b"first"


def test_write_atomically_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(layout.os, "fsync", lambda file: calls.append("fsync") or fsync(file))
    monkeypatch.setattr(
        layout.os, "replace", lambda *paths: calls.append("replace") or replace(*paths)
    )
    write_atomically(tmp_path / "record.json", b"content")
    assert calls == ["fsync", "replace", "fsync"]  # the content, and at last the name
