"""`prescreen verify`: one line where all is well, a line a problem where not."""

import json

import pytest
from click.testing import CliRunner

from jobs.verify import verify_command
from tests.test_pipeline_verification import CSV, FILES, SCORES, publish_run


def invoke(*arguments):
    return CliRunner().invoke(verify_command, [str(argument) for argument in arguments])


@pytest.fixture
def run(tmp_path):
    return publish_run(tmp_path / "out")


@pytest.fixture
def output(run):
    return run.parents[1]


def test_verify_as_published_is_one_line_with_counts(run, output):
    size_bytes = sum((output / name).stat().st_size for name in FILES)
    result = invoke(run)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        f"Run r1 is what was published: 6 files, {size_bytes:,} bytes; 3 images scored,"
        " 1 rejected, 2 skipped, 6 in the manifest.\n"
    )


def test_verify_json_as_published_is_ok(run):
    result = invoke(run, "--json")
    values = json.loads(result.stdout)
    assert (result.exit_code, result.stderr) == (0, "")
    assert (values["ok"], values["run_id"], values["files"]) == (True, "r1", 6)
    assert (values["counts"]["manifest"], values["problems"]) == (6, [])


def test_verify_problems_are_a_line_each_and_exit_1(run, output):
    (output / SCORES).unlink()
    (output / "worklist" / "run_id=r1.csv.bak").touch()
    result = invoke(run)
    assert result.exit_code == 1
    assert result.stdout == (
        f"{SCORES}: is missing\nworklist/run_id=r1.csv.bak: is not in the record\n"
    )
    assert result.stderr == (
        "Error: run r1 is not what was published: 2 problems. Restore what is named from a copy,"
        " or remove the run, its record first, and score its images again.\n"
    )


def test_verify_one_problem_is_counted_as_one(run, output):
    (output / CSV).unlink()
    assert "published: 1 problem. Restore" in invoke(run).stderr


@pytest.mark.parametrize(("extra", "last"), [(20, ": is not in the record"), (21, "and 1 more")])
def test_verify_many_problems_end_in_their_number(run, output, extra, last):
    names = [f"scores/run_id=r1/x{number:02}" for number in range(extra)]
    for name in names:
        (output / name).touch()
    result = invoke(run)
    lines = result.stdout.splitlines()
    assert lines[:20] == [f"{name}: is not in the record" for name in names[:20]]
    assert lines[-1].endswith(last)
    assert len(lines) == extra
    assert f"{extra} problems." in result.stderr


def test_verify_json_has_all_problems_and_exits_1(run, output):
    for number in range(30):
        (output / f"scores/run_id=r1/x{number:02}").touch()
    result = invoke(run, "--json")
    values = json.loads(result.stdout)
    assert (result.exit_code, values["ok"], len(values["problems"])) == (1, False, 30)
    assert values["problems"][0] == {
        "path": "scores/run_id=r1/x00",
        "what": "is not in the record",
    }


def test_verify_file_name_that_would_break_the_line_is_escaped(run, output):
    (output / "scores/run_id=r1/a\nb\udcff").touch()
    lines = invoke(run).stdout.splitlines()
    assert lines == [r"'scores/run_id=r1/a\nb\udcff': is not in the record"]
    values = json.loads(invoke(run, "--json").stdout)
    assert values["problems"][0]["path"] == "scores/run_id=r1/a\nb\udcff"


def test_verify_what_is_no_record_exits_2(tmp_path):
    result = invoke(tmp_path / "runs" / "r1.json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "Error: a run must be named by its record, OUTPUT/runs/ID.json, that can be read."
        f" Received: {tmp_path / 'runs' / 'r1.json'} (No such file or directory).\n"
    )
