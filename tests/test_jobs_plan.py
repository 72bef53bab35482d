"""The command `plan`, as its users see it: the line of `score` with another word."""

import json

import pytest
from click.testing import CliRunner

from jobs.cli import cli
from jobs.plan_summary import summarise_plan
from pipeline import forecast
from schemas.errors import InputError

PLAN = {
    "finishes_first": ["r0"],
    "published_already": None,
    "resumes": "r1",
    "held_by": None,
    "images": {
        "manifest": 1000, "new": 900, "changed": 20, "other_settings": 10, "again": 0,
        "skipped": 50, "kept": 20, "stale": 30, "to_score": 930,
    },
    "sample": {
        "images": 128, "rejected_by_reason": {"truncated": 2, "not_found": 1},
        "runner": "FnApiRunner", "batch_size": 32, "precision": "float32",
    },
    "runner": "SparkRunner",
    "leaves_out": [],
    "expected": {
        "rejected": 22, "rejected_share": 3 / 128, "rejected_share_95": [0.008, 0.0667],
        "reject_limit": 0.01, "scored": 928, "flagged": 800, "drawn": 800, "overlays": 2200,
    },
    "rates": {
        "decode": 75.0, "inference": 40.25, "score": 26.5, "draw": 16.0, "bottleneck": "inference"
    },
    "seconds": {
        "all": 1200.0, "start": 13.2, "score": 1100.0, "draw": 80.0, "write": 0.31, "report": 0.0
    },
    "disk_bytes": {
        "scores": 600_000, "rejects": 7000, "gradcam": 77_000_000, "worklist": 0, "report": 0,
        "skipped": 2000, "published": 77_609_000, "staged": 1_200_000_000,
    },
    "hours": 1 / 3, "deadline_hours": 0.25, "machines": 2,
    "prices": [
        {
            "name": "a machine", "price_per_hour": 0.5, "currency": "USD", "date": "2026-11-22",
            "source": "a list", "cost": 0.17, "cost_per_million": 5.26,
        }
    ],
}  # fmt: skip


def invoke(*arguments):
    line = ["plan", "--manifest", "m.csv", "--output", "out", *arguments]
    return CliRunner().invoke(cli, line)


@pytest.fixture
def asked(monkeypatch):
    """What the command asks for, which is answered by `PLAN`."""
    found = []

    def answer(options, prepare_worker, on_step):
        found.append(options)
        on_step("looking")
        return PLAN

    monkeypatch.setattr(forecast, "forecast_run", answer)
    return found


def test_plan_has_every_option_of_score_as_it_is():
    score, plan = (
        {parameter.name: parameter.to_info_dict() for parameter in cli.commands[name].params}
        for name in ("score", "plan")
    )
    assert set(plan) - set(score) == {"deadline_hours", "prices_file", "as_json"}
    assert {name: plan[name] for name in score} == score


def test_plan_says_all_in_plain_lines(asked):
    result = invoke()

    assert result.exit_code == 0, result.output
    assert result.stderr == "Looking.\n"
    assert result.stdout.splitlines() == [
        "First, the interrupted commit of run r0 is finished.",
        "Manifest: 1000 images, 930 to score: 900 new, 30 stale.",
        "  Stale: 20 whose file has changed, 10 of another model or other settings.",
        "  Skipped: 50, which published runs hold.",
        "  Kept: 20 of run r1, which is unfinished and gone on with.",
        "Sample: 128 images from all over these; 3 rejected (truncated 2, not_found 1), so expect"
        " 2.3% of all (0.8% to 6.7%).",
        "  That is more than --reject-limit 0.01 allows: the run would end with exit code 3.",
        "Rates: decode 75.0 images/s, network 40.2, the whole job 26.5. The bottleneck is the"
        " network.",
        "Time: 0.33 h on this machine (20 min): 13 s to start, 18 min to score, 80 s to draw,"
        " 0.3 s to write.",
        "  Drawn: 2200 overlays of 800 images; expect 800 flagged.",
        "  All of it was measured here, on FnApiRunner: what the workers of SparkRunner do is not"
        " known.",
        "  Within 0.25 h: 2 machines like this one.",
        "Disk: 77.6 MB (scores 600 KB, rejects 7 KB, skipped 2 KB, overlays 77.0 MB), and 1.2 GB"
        " more until it is published.",
        "Cost, of machines as fast as this one:",
        "  a machine: 0.17 USD for this run, 5.26 for a million images, at 0.5 an hour on"
        " 2026-11-22 (a list).",
    ]


def test_plan_as_json_is_all_that_is_known(asked):
    result = invoke("--json", "--quiet")

    assert (json.loads(result.stdout), result.stderr) == (PLAN, "")


def test_plan_hands_on_what_it_was_given(asked, tmp_path):
    prices = tmp_path / "prices.toml"
    prices.write_text(
        '[[price]]\nname = "a"\nprice_per_hour = 1\ncurrency = "EUR"\ndate = 2026-01-01\n'
        'source = "b"\n'
    )
    result = invoke(
        "--only-new", "--resume", "--log-json", "--gradcam-limit", "7", "--deadline-hours", "8",
        "--prices", str(prices), "--", "--runner=DirectRunner",
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    (options,) = asked
    assert (options.deadline_hours, options.prices[0].currency) == (8.0, "EUR")
    assert options.load_s > 0
    score = options.score
    assert (score.manifest, score.output, score.gradcam_limit) == ("m.csv", "out", 7)
    assert score.only_new and score.resume and score.beam_args == ("--runner=DirectRunner",)
    (line,) = result.stderr.splitlines()
    assert json.loads(line)["step"] == "looking"


def test_plan_bad_input_exits_2(monkeypatch):
    def refuse(*_):
        raise InputError("manifest must be there.")

    monkeypatch.setattr(forecast, "forecast_run", refuse)
    result = invoke()

    assert (result.exit_code, result.stderr) == (2, "Error: manifest must be there.\n")


def test_plan_of_nothing_says_that_nothing_was_measured():
    images = dict.fromkeys(PLAN["images"], 0) | {"manifest": 10, "skipped": 10}
    plan = PLAN | {"sample": None, "images": images, "finishes_first": [], "resumes": None}

    assert summarise_plan(plan).splitlines() == [
        "Manifest: 10 images, 0 to score.",
        "  Skipped: 10, which published runs hold.",
        "Nothing is to be scored, so nothing was measured.",
    ]


def test_plan_of_a_published_run_says_so():
    assert summarise_plan({"finishes_first": [], "published_already": "r0"}) == (
        "Run r0 is published already: nothing is left."
    )


def test_plan_says_what_it_leaves_out():
    plan = PLAN | {"leaves_out": ["the DICOM objects of --dicom-out"]}
    last = summarise_plan(plan).splitlines()[-1]
    assert last == "Not in this plan: the DICOM objects of --dicom-out."


def test_plan_of_a_run_that_another_process_holds_says_so():
    text = summarise_plan(PLAN | {"held_by": "process 1 on host, last seen 2 s ago"})

    assert "  It is being worked on now (process 1 on host, last seen 2 s ago): a start" in text
