"""The list of runs: each in the state it is in, and none hidden by another."""

import datetime
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.layout import Output, RunPaths
from pipeline.lock import Holder, RunLock
from pipeline.run_listing import ListedRun, RunPhase, list_runs
from pipeline.run_state import RunState
from schemas.errors import InputError

_ROOT = Path(__file__).parents[1]

SETTINGS = {
    "model_id": "0123456789ab",
    "thresholds_id": "ba9876543210",
    "tta": "none",
    "precision": "float32",
}
FILE = {"path": "scores/x", "size_bytes": 1, "sha256": "ab" * 32, "rows": 4}


def at(day: int) -> datetime.datetime:
    return datetime.datetime(2026, 11, day, 4, 29, 17, tzinfo=datetime.UTC)


def publish(output: Path, run_id: str, day: int, files: int = 2, **changes) -> Path:
    """Writes the record of a run as the commit does, and nothing else of it."""
    record = {
        "run_id": run_id,
        **SETTINGS,
        "counts": {"manifest": 9, "scored": 5, "rejected": 1, "skipped": 3, "flagged": 2},
        "files": [FILE] * files,
        "started_at": at(day).isoformat(timespec="seconds"),
        **changes,
    }
    path = RunPaths(output, run_id).record
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path


def published(run_id: str, day: int) -> ListedRun:
    counts = {"scored": 5, "rejected": 1, "skipped": 3, "flagged": 2}
    return ListedRun(run_id, RunPhase.PUBLISHED, at(day), counts, SETTINGS)


def begin(output: Path, run_id: str, day: int, scores: tuple[int, ...] = ()) -> RunPaths:
    """Begins a run with staged parts of that many rows each."""
    paths = RunPaths(output, run_id)
    paths.staging.mkdir(parents=True)
    RunState({**SETTINGS, "carried": []}, "d" * 12, at(day), {}, None).write(paths)
    stage(paths, "scores", *scores)
    return paths


def stage(paths: RunPaths, table: str, *rows: int) -> None:
    paths.parts(table).mkdir(exist_ok=True)
    for number, count in enumerate(rows):
        pq.write_table(pa.table({"x": range(count)}), paths.parts(table) / f"{number}.parquet")


def unfinished(run_id: str, day: int, scored: int = 0, rejected: int = 0) -> ListedRun:
    return ListedRun(
        run_id,
        RunPhase.UNFINISHED,
        at(day),
        {"scored": scored, "rejected": rejected},
        SETTINGS,
        advice=f"Run the same command with --resume --run-id {run_id}, or remove"
        f" _staging/{run_id} to score its images anew.",
    )


def test_list_runs_of_no_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(InputError) as raised:
            list_runs(Output(path))
        assert str(raised.value) == (
            "OUTPUT must be a folder of runs, as `prescreen score --output` made it. Received:"
            f" {path}, which is no folder."
        )


def test_list_runs_of_an_empty_folder_is_empty(tmp_path):
    assert list_runs(Output(tmp_path)) == []
    (tmp_path / "_staging").mkdir()
    (tmp_path / "runs").mkdir()
    assert list_runs(Output(tmp_path)) == []


def test_list_runs_published_says_what_became_of_its_images(tmp_path):
    publish(tmp_path, "r1", 1)
    assert list_runs(Output(tmp_path)) == [published("r1", 1)]


def test_list_runs_are_newest_first_whatever_their_names_and_states(tmp_path):
    publish(tmp_path, "zz", 1)
    publish(tmp_path, "aa", 4)
    begin(tmp_path, "mm", 3)
    publish(tmp_path, "bb", 2, started_at="2026-11-02T05:29:17+01:00")
    assert list_runs(Output(tmp_path)) == [
        published("aa", 4),
        unfinished("mm", 3),
        published("bb", 2),
        published("zz", 1),
    ]


@given(st.lists(st.integers(1, 28), unique=True, max_size=6))
def test_list_runs_order_is_that_of_their_starts(tmp_path_factory, days):
    output = tmp_path_factory.mktemp("out")
    for number, day in enumerate(days):
        publish(output, f"r{number}", day)
    assert [run.started.day for run in list_runs(Output(output))] == sorted(days, reverse=True)


def test_list_runs_unfinished_counts_the_rows_of_whole_parts(tmp_path):
    paths = begin(tmp_path, "r1", 1, scores=(512, 512, 7))
    stage(paths, "rejects", 3)
    stage(paths, "plan", 99)
    (paths.parts("scores") / ".9.parquet.tmp").write_bytes(b"half")
    assert list_runs(Output(tmp_path)) == [unfinished("r1", 1, scored=1031, rejected=3)]


def test_list_runs_unfinished_counts_parts_that_cannot_be_read(tmp_path):
    paths = begin(tmp_path, "r1", 1, scores=(512, 512))
    part = paths.parts("scores") / "1.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    (run,) = list_runs(Output(tmp_path))
    assert run.state == RunPhase.UNFINISHED
    assert run.counts == {"scored": 512, "rejected": 0, "unreadable_parts": 1}


def test_list_runs_built_and_not_published_is_committing(tmp_path):
    paths = begin(tmp_path, "r1", 1, scores=(8,))
    paths.prepared.write_text("{}")
    assert list_runs(Output(tmp_path)) == [
        ListedRun(
            "r1",
            RunPhase.COMMITTING,
            at(1),
            {"scored": 8, "rejected": 0},
            SETTINGS,
            advice="Built and not yet published. The next `prescreen score` into this folder"
            " finishes it: start it with --resume. Do not remove _staging/r1.",
        )
    ]


def test_list_runs_without_a_state_has_only_begun(tmp_path):
    RunPaths(tmp_path, "r1").staging.mkdir(parents=True)
    (tmp_path / "_staging" / "a file").touch()
    assert list_runs(Output(tmp_path)) == [
        ListedRun(
            "r1", RunPhase.BEGUN, advice="Ended before it said what it is. Remove _staging/r1."
        )
    ]


def test_list_runs_published_stays_so_with_leftovers(tmp_path):
    publish(tmp_path, "r1", 1)
    paths = begin(tmp_path, "r1", 1, scores=(5,))
    paths.prepared.write_text("{}")
    publish(tmp_path, "r2", 2)
    RunPaths(tmp_path, "r2").staging.mkdir()
    assert list_runs(Output(tmp_path)) == [published("r2", 2), published("r1", 1)]


# Who works on it.


@pytest.mark.parametrize("prepared", [False, True])
def test_list_runs_held_by_a_process_is_running(tmp_path, prepared):
    paths = begin(tmp_path, "r1", 1, scores=(5,))
    if prepared:
        paths.prepared.write_text("{}")
    with RunLock(paths.lock):
        (run,) = list_runs(Output(tmp_path))
    assert (run.state, run.counts) == (RunPhase.RUNNING, {"scored": 5, "rejected": 0})
    assert (run.started, run.settings) == (at(1), SETTINGS)
    assert (run.holder.process, run.holder.host) == (os.getpid(), socket.gethostname())
    assert run.holder.age_s < 60
    assert run.advice == (
        f"Held by {run.holder}. Wait for it; where it was stopped, start again with --resume."
    )


def test_list_runs_held_before_its_state_is_written_is_running(tmp_path):
    paths = RunPaths(tmp_path, "r1")
    paths.staging.mkdir(parents=True)
    with RunLock(paths.lock):
        (run,) = list_runs(Output(tmp_path))
    assert (run.state, run.started, run.counts) == (RunPhase.RUNNING, None, {})


def test_list_runs_held_under_a_state_of_another_version_is_running(tmp_path):
    paths = begin(tmp_path, "r1", 1)
    paths.state.write_text(json.dumps({"state_version": 99}))
    with RunLock(paths.lock):
        (run,) = list_runs(Output(tmp_path))
    assert run.state == RunPhase.RUNNING


def test_list_runs_held_elsewhere_is_running_until_it_gives_no_sign_of_life(tmp_path):
    paths = begin(tmp_path, "r1", 1)
    paths.lock.write_text(json.dumps({"host": "elsewhere", "process": 7, "token": "t"}))
    (run,) = list_runs(Output(tmp_path))
    assert run.state == RunPhase.RUNNING
    assert run.holder == Holder("elsewhere", 7, "t", run.holder.age_s)
    long_ago = time.time() - 3600
    os.utime(paths.lock, (long_ago, long_ago))
    assert list_runs(Output(tmp_path)) == [unfinished("r1", 1)]


def test_list_runs_lock_of_a_dead_process_here_is_no_holder(tmp_path):
    paths = begin(tmp_path, "r1", 1)
    paths.lock.write_text(
        json.dumps({"host": socket.gethostname(), "process": os.getpid(), "token": "t"})
    )
    assert list_runs(Output(tmp_path)) == [unfinished("r1", 1)]


# What cannot be read.


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "JSONDecodeError"),
        (b'{"run_id": "r1"', "JSONDecodeError"),
        (b"{\xff}", "UnicodeDecodeError"),
        (b"[]", "TypeError"),
        (b"{}", "KeyError"),
        (b'{"started_at": 7}', "TypeError"),
        (b'{"started_at": "yesterday"}', "ValueError"),
        (b'{"started_at": "2026-11-22T04:29:00+00:00", "counts": {}}', "KeyError"),
        (
            b'{"started_at": "2026-11-22T04:29:00+00:00", "counts": {"scored": "many"}}',
            "ValueError",
        ),
    ],
)
def test_list_runs_damaged_record_is_broken_and_hides_no_other(tmp_path, content, what):
    publish(tmp_path, "r2", 2)
    publish(tmp_path, "r1", 1).write_bytes(content)
    advice = (
        f"runs/r1.json is not as `prescreen score` wrote it ({what})."
        " Restore it, or remove it and what it published."
    )
    assert list_runs(Output(tmp_path)) == [
        ListedRun("r1", RunPhase.BROKEN, advice=advice),
        published("r2", 2),
    ]


def test_list_runs_record_that_is_no_file_is_broken(tmp_path):
    (tmp_path / "runs" / "r1.json").mkdir(parents=True)
    (run,) = list_runs(Output(tmp_path))
    assert run.state == RunPhase.BROKEN
    assert "(Is a directory)" in run.advice


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "JSONDecodeError"),
        (b"[]", "TypeError"),
        (b"{}", "KeyError"),
        (b'"text"', "AttributeError"),
        (b'{"state_version": 2, "started": "2026-11-22T04:29:00+00:00"}', "TypeError"),
    ],
)
def test_list_runs_damaged_state_is_broken_and_hides_no_other(tmp_path, content, what):
    begin(tmp_path, "r2", 2)
    begin(tmp_path, "r1", 1).state.write_bytes(content)
    broken, other = list_runs(Output(tmp_path))
    assert other == unfinished("r2", 2)
    assert (broken.run_id, broken.state) == ("r1", RunPhase.BROKEN)
    assert broken.advice == (
        "an unfinished run must be as `prescreen score` wrote it. Received: run r1, whose run.json"
        f" cannot be understood ({what}). Remove _staging/r1 to score its images anew."
    )


def test_list_runs_state_of_another_version_is_broken_with_its_remedy(tmp_path):
    begin(tmp_path, "r1", 1).state.write_text(json.dumps({"state_version": 99}))
    (run,) = list_runs(Output(tmp_path))
    assert run == ListedRun(
        "r1",
        RunPhase.BROKEN,
        advice="state_version must be 2. Received: 99, of run r1. Finish it with the version"
        " that began it, or remove _staging/r1.",
    )


def test_list_runs_temporary_and_foreign_files_are_no_runs(tmp_path):
    publish(tmp_path, "r1", 1)
    for name in (".r2.json.tmp", "._r1.json", "notes.txt"):
        (tmp_path / "runs" / name).touch()
    (tmp_path / "_staging" / ".check-abc").mkdir(parents=True)
    assert list_runs(Output(tmp_path)) == [published("r1", 1)]


# Many runs.


@pytest.mark.parametrize("files", [0, 1, 3])
def test_list_runs_record_is_read_alike_with_any_number_of_files(tmp_path, files):
    options = {"carry": ["a", "b"], "note": '\n  "files": [\n', "beam_args": [[1, [2]]]}
    publish(tmp_path, "r1", 1, files=files, options=options)
    publish(tmp_path, "r2", 2, files=files).write_text(
        json.dumps(json.loads((tmp_path / "runs" / "r2.json").read_text()))
    )
    assert list_runs(Output(tmp_path)) == [published("r2", 2), published("r1", 1)]


def test_list_runs_leaves_lists_of_files_unread(tmp_path):
    path = publish(tmp_path, "r1", 1, files=1000)
    path.write_bytes(path.read_bytes().replace(b'"rows": 4', b'"rows": :'))
    assert list_runs(Output(tmp_path)) == [published("r1", 1)]


def test_list_runs_writes_nothing(tmp_path):
    publish(tmp_path, "r1", 1)
    paths = begin(tmp_path, "r2", 2, scores=(3,))
    paths.lock.touch()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    list_runs(Output(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_run_listing_loads_neither_beam_nor_duckdb():
    code = "import sys, pipeline.run_listing; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=_ROOT
    )
    assert not {"apache_beam", "duckdb", "tensorflow", "pandas"} & set(result.stdout.split())
