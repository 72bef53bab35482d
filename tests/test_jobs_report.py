"""The command `report`, as its users see it."""

import dataclasses
import json

import pytest
from click.testing import CliRunner

from jobs.cli import cli
from pipeline.commit import commit_run
from pipeline.verification import verify_run
from tests.fakes import (
    LOCAL,
    make_facts,
    make_job,
    make_settings,
    manifest_row,
    picture,
    scores_of,
    stage,
)

IMAGES = 110


def publish(folder, run_id, *, report=False, level=0, images=IMAGES):
    """Publishes a run whose images all have that score of Mass, in 255ths; returns its record."""
    names = [f"{run_id}-{k}" for k in range(images)]
    job = make_job(folder, [manifest_row(name) for name in names], run_id=run_id)
    row = scores_of("", picture({"Mass": level}))
    stage(job.paths, "scores", "0000", [{**row, "image_id": name} for name in names])
    facts = make_facts()
    started = facts.state.started.replace(day=int(run_id[1:]))
    facts = dataclasses.replace(facts, state=dataclasses.replace(facts.state, started=started))
    commit_run(job, make_settings(report=report), LOCAL, facts)
    return folder / "runs" / f"{run_id}.json"


def invoke(*arguments):
    return CliRunner().invoke(cli, ["report", *map(str, arguments)])


def test_report_goes_beside_a_run_that_made_none_and_leaves_it_sound(tmp_path):
    run = publish(tmp_path / "out", "r1")
    result = invoke(run)
    path = tmp_path / "out/report/run_id=r1.html"
    assert (result.exit_code, result.output) == (0, f"{path}\n")
    assert "<h1>Run r1</h1>" in path.read_text()
    assert verify_run(run).problems == []


def test_report_of_a_run_that_published_one_needs_another_place(tmp_path):
    run = publish(tmp_path / "out", "r1", report=True)
    path = tmp_path / "out/report/run_id=r1.html"
    before = path.read_bytes()
    result = invoke(run)
    assert result.exit_code == 2
    assert result.output == (
        "Error: --output must be given for a run that published its report, which stays as it is:"
        f" {path}. Received: none.\n"
    )
    assert invoke(run, "--output", tmp_path / "mine.html").exit_code == 0
    assert "<h1>Run r1</h1>" in (tmp_path / "mine.html").read_text()
    assert path.read_bytes() == before


def test_report_compares_with_the_newest_before_or_with_the_one_named(tmp_path):
    first, second, third = (
        publish(tmp_path / "out", name, level=level)
        for name, level in (("r1", 200), ("r2", 100), ("r3", 100))
    )
    file = tmp_path / "report.html"
    assert invoke(third, "--output", file).exit_code == 0
    assert "Against run r2 of" in file.read_text()
    assert "All is within normal variation." in file.read_text()
    assert invoke(third, "--output", file, "--against", first).exit_code == 0
    assert "Against run r1 of" in file.read_text()
    assert "Mass: flag rate -1.000, normal is up to 0.073" in file.read_text()
    assert invoke(first, "--output", file).exit_code == 0
    assert "no earlier run" in file.read_text()
    assert invoke(second, "--output", file, "--against", third).exit_code == 0


def test_report_of_few_images_is_not_compared(tmp_path):
    publish(tmp_path / "out", "r1")
    run = publish(tmp_path / "out", "r2", images=9)
    assert invoke(run).exit_code == 0
    text = (tmp_path / "out/report/run_id=r2.html").read_text()
    assert "Not compared: one of them scored fewer than 100 images." in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_id": "fff"}, "same model_id. Received: r1, with fff and not 0123456789ab"),
        ({"tta": "all"}, "same tta. Received: r1, with all and not none"),
        ({"run_id": "r2"}, "must be another run. Received: r2, the run itself"),
        ({"counts": {"scored": 99}}, "100 scored images or more. Received: r1, with 99"),
    ],
)
def test_report_against_what_cannot_be_compared_is_refused(tmp_path, change, message):
    other = publish(tmp_path / "out", "r1")
    run = publish(tmp_path / "out", "r2")
    other.write_text(json.dumps({**json.loads(other.read_text()), **change}))
    result = invoke(run, "--against", other)
    assert result.exit_code == 2 and message in result.output
    assert not (tmp_path / "out/report").exists()


def test_report_against_a_run_without_its_files_is_refused(tmp_path):
    publish(tmp_path / "out", "r1")
    run = publish(tmp_path / "out", "r2")
    (tmp_path / "out/scores/run_id=r1/part-00000.parquet").unlink()
    result = invoke(run, "--against", tmp_path / "out/runs/r1.json")
    assert result.exit_code == 2
    assert "Received: r1 without part-00000.parquet of its scores." in result.output


@pytest.mark.parametrize("content", [None, b"no Parquet"])
def test_report_of_a_run_whose_predecessor_lost_its_files_says_so(tmp_path, content):
    first = publish(tmp_path / "out", "r1")
    run = publish(tmp_path / "out", "r2")
    lost = tmp_path / "out/scores/run_id=r1/part-00000.parquet"
    lost.write_bytes(content) if content else lost.unlink()
    assert invoke(run).exit_code == 0
    text = (tmp_path / "out/report/run_id=r2.html").read_text()
    assert "Not compared: the scores of run r1 are missing or damaged." in text
    assert "Drift by finding" not in text
    named = invoke(run, "--against", first, "--output", tmp_path / "mine.html")
    assert named.exit_code == 2 and "Received: r1 " in named.output


def test_report_of_a_run_without_its_files_is_refused(tmp_path):
    run = publish(tmp_path / "out", "r1")
    (tmp_path / "out/scores/run_id=r1/part-00000.parquet").unlink()
    result = invoke(run)
    assert result.exit_code == 2
    assert "RUN without scores/run_id=r1/part-00000.parquet." in result.output


@pytest.mark.parametrize("run", ["out", "out/runs/none.json", "out/runs", "none.json"])
def test_report_of_what_is_no_run_is_refused(tmp_path, run):
    publish(tmp_path / "out", "r1")
    result = invoke(tmp_path / run)
    assert result.exit_code == 2 and "OUTPUT/runs/ID.json" in result.output


def test_report_that_cannot_be_written_says_where(tmp_path):
    run = publish(tmp_path / "out", "r1")
    result = invoke(run, "--output", run / "report.html")
    assert result.exit_code == 2
    assert f"--output must be a file that can be written. Received: {run}/report.html" in (
        result.output
    )
