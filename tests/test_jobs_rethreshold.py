"""The command `rethreshold`, as its users see it."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs.cli import cli
from model.thresholds import thresholds_to_json
from pipeline.commit import commit_run
from pipeline.score_options import ScoreOptions
from tests.fakes import (
    LOCAL,
    make_facts,
    make_job,
    make_settings,
    make_thresholds,
    manifest_row,
    picture,
    reject_of,
    scores_of,
    stage,
)

_ROOT = Path(__file__).parents[1]

_LEVELS = {"high": {"Mass": 240, "Hernia": 150}, "low": {"Mass": 140}, "none": {"Edema": 110}}


@pytest.fixture
def run(tmp_path):
    """The record of a run at 0.5: `high` is flagged twice, `low` once, `none` not."""
    names = [*_LEVELS, "bad"]
    job = make_job(tmp_path / "out", [manifest_row(name) for name in names], run_id="night")
    rows = [scores_of(name, picture(levels)) for name, levels in _LEVELS.items()]
    stage(job.paths, "scores", "0000", rows)
    stage(job.paths, "rejects", "0000", [reject_of("bad")])
    options = ScoreOptions("manifest.csv", "out", "bundle", gradcam_top=0).to_json()
    facts = dataclasses.replace(make_facts(), options=options)
    commit_run(job, make_settings(), LOCAL, facts)
    return tmp_path / "out/runs/night.json"


def write_thresholds(path, threshold, tta="none"):
    values = thresholds_to_json(make_thresholds(threshold))
    path.write_text(json.dumps({"tta": tta, "findings": values}))
    return path


def test_rethreshold_says_what_changed_and_loads_no_tensorflow_where_no_map_is_new(run, tmp_path):
    thresholds = write_thresholds(tmp_path / "t.json", 0.6)
    arguments = ["rethreshold", str(run), "--thresholds", str(thresholds), "--run-id", "new"]
    code = (
        "import sys\nfrom jobs.cli import cli\n"
        f"cli({arguments!r}, standalone_mode=False)\n"
        "sys.exit('tensorflow' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=_ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    out = tmp_path / "out"
    assert [line for line in lines if "Time:" not in line] == [
        "Run new supersedes night: 3 images scored then, 1 rejected, 0 skipped.",
        "  Flagged: 1 images, 0 of them newly; 1 no longer; 1 on the worklist.",
        "  Findings: 0 flagged newly, 2 no longer.",
        "  Maps: 1 kept, 0 computed, 0 missing.",
        "  Overlays: 0 kept, 0 drawn, 0 not (attention, not localisation).",
        f"  Scores:   {out}/scores/run_id=new",
        f"  Worklist: {out}/worklist/run_id=new.csv",
        f"  Overlays: {out}/gradcam/run_id=new",
        f"  Report:   {out}/report/run_id=new.html",
        f"  Record:   {out}/runs/new.json",
        "Model 0123456789ab: Fake network. For tests.",
    ]
    listed = CliRunner().invoke(cli, ["runs", str(out)]).stdout.splitlines()
    assert listed[0].startswith("new    published ")
    assert listed[1].startswith("night  superseded ")
    assert listed[1].endswith("Superseded by new: other thresholds for the same scores.")


@pytest.mark.parametrize(
    ("threshold", "tta", "message"),
    [
        (0.6, "all", "holds thresholds for --tta all"),
        (0.4, "none", "A bundle must be a folder"),
    ],
    ids=["other_mode", "no_bundle_for_new_maps"],
)
def test_rethreshold_of_what_cannot_be_done_exits_2_and_publishes_nothing(
    run, tmp_path, threshold, tta, message
):
    thresholds = write_thresholds(tmp_path / "t.json", threshold, tta)
    result = CliRunner().invoke(cli, ["rethreshold", str(run), "--thresholds", str(thresholds)])
    assert result.exit_code == 2 and message in result.output
    assert [path.name for path in run.parent.iterdir()] == ["night.json"]
    assert list((tmp_path / "out/_staging").glob("*")) == []
