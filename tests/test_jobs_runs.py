"""`prescreen runs`: a line a run for people, JSON for programs."""

import json
import os
import socket

import pytest
from click.testing import CliRunner

from jobs.runs import runs_command
from pipeline.layout import RunPaths
from pipeline.lock import RunLock
from tests.test_pipeline_run_listing import SETTINGS, at, begin, publish


def invoke(*arguments):
    return CliRunner().invoke(runs_command, [str(argument) for argument in arguments])


@pytest.fixture
def output(tmp_path):
    """A folder with a run in each state that needs no process."""
    counts = {"scored": 1200, "rejected": 3, "skipped": 0, "flagged": 900}
    publish(tmp_path, "night-1", 1, counts=counts)
    begin(tmp_path, "night-2", 2, scores=(512, 1)).prepared.write_text("{}")
    begin(tmp_path, "night-3", 3, scores=(512, 88))
    RunPaths(tmp_path, "n4").staging.mkdir()
    publish(tmp_path, "n5", 5).write_text("no JSON")
    return tmp_path


def test_runs_are_a_line_each(output):
    result = invoke(output)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "n5       broken      -                     runs/n5.json is not as `prescreen score` wrote"
        " it (JSONDecodeError). Restore it, or remove it and what it published.",
        "n4       begun       -                     Ended before it said what it is."
        " Remove _staging/n4.",
        "night-3  unfinished  2026-11-03 04:29 UTC  600 scored, 0 rejected so far. Run the same"
        " command with --resume --run-id night-3, or remove _staging/night-3 to score its images"
        " anew.",
        "night-2  committing  2026-11-02 04:29 UTC  513 scored, 0 rejected so far. Built and not"
        " yet published. The next `prescreen score` into this folder finishes it: start it with"
        " --resume. Do not remove _staging/night-2.",
        "night-1  published   2026-11-01 04:29 UTC  1,200 scored, 3 rejected, 0 skipped,"
        " 900 flagged.",
    ]


def test_runs_running_says_who_works_on_it(tmp_path):
    paths = begin(tmp_path, "r1", 1, scores=(512,))
    with RunLock(paths.lock):
        line = invoke(tmp_path).stdout
        (values,) = json.loads(invoke(tmp_path, "--json").stdout)
    assert line.startswith(
        "r1  running     2026-11-01 04:29 UTC  512 scored, 0 rejected so far. Held by process"
        f" {os.getpid()} on {socket.gethostname()}, last seen "
    )
    assert line.endswith(" s ago. Wait for it; where it was stopped, start again with --resume.\n")
    assert line.count("\n") == 1
    assert values["state"] == "running"
    assert sorted(values["holder"]) == ["age_s", "host", "process"]
    assert values["holder"]["process"] == os.getpid()


def test_runs_parts_that_cannot_be_read_are_told(tmp_path):
    paths = begin(tmp_path, "r1", 1, scores=(512, 4))
    (paths.parts("scores") / "1.parquet").write_bytes(b"half")
    assert "512 scored, 0 rejected, 1 unreadable parts so far." in invoke(tmp_path).stdout


def test_runs_json_says_all_that_is_known(output):
    result = invoke(output, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    by_id = {run["run_id"]: run for run in json.loads(result.stdout)}
    assert list(by_id) == ["n5", "n4", "night-3", "night-2", "night-1"]
    assert by_id["night-1"] == {
        "run_id": "night-1",
        "state": "published",
        "started_at": at(1).isoformat(),
        "counts": {"scored": 1200, "rejected": 3, "skipped": 0, "flagged": 900},
        "settings": SETTINGS,
        "supersedes": None,
        "holder": None,
        "advice": "",
    }
    assert by_id["night-3"] == {
        "run_id": "night-3",
        "state": "unfinished",
        "started_at": at(3).isoformat(),
        "counts": {"scored": 600, "rejected": 0},
        "settings": SETTINGS,
        "supersedes": None,
        "holder": None,
        "advice": "Run the same command with --resume --run-id night-3, or remove"
        " _staging/night-3 to score its images anew.",
    }
    assert [by_id[name]["state"] for name in ("n5", "n4", "night-2")] == [
        "broken",
        "begun",
        "committing",
    ]
    assert by_id["n4"]["started_at"] is None


def test_runs_of_an_empty_folder_says_so(tmp_path):
    result = invoke(tmp_path)
    assert (result.exit_code, result.stdout) == (0, f"No runs in {tmp_path}.\n")
    assert json.loads(invoke(tmp_path, "--json").stdout) == []


def test_runs_of_no_folder_exits_2(tmp_path):
    result = invoke(tmp_path / "nowhere")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "Error: OUTPUT must be a folder of runs, as `prescreen score --output` made it."
        f" Received: {tmp_path / 'nowhere'}, which is no folder.\n"
    )
