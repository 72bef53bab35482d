"""What a run takes, worked out by hand from what two runs of a sample took."""

import datetime
from pathlib import Path

import pytest

from pipeline.prices import Price
from pipeline.reckoning import Line, PlanOptions, WorkCounts, expect, reckon
from pipeline.sampling import Measured, SampleRun
from pipeline.score_options import ScoreOptions
from schemas.errors import InputError


def sample_run(images, score_s, *, rejected=0, write_s=0.5, start_s=0.0) -> SampleRun:
    """Half of the scored are flagged, and of these all drawn, twice each: 0.1 s and 2 x 1 KB."""
    scored = images - rejected
    flagged = scored // 2
    return SampleRun(
        images,
        {
            "timings_s": {
                "start": start_s,
                "score": score_s,
                "draw": 0.3 + 0.1 * flagged,
                "write": write_s,
            },
            "counts": {
                "scored": scored,
                "rejected": rejected,
                "flagged": flagged,
                "listed": flagged,
                "drawn": flagged,
                "overlays": 2 * flagged,
            },
            "files": [
                {"path": "scores/run_id=s/part", "size_bytes": 5000 + 700 * scored},
                {"path": "rejects/run_id=s/part", "size_bytes": 4000 + 100 * rejected},
                {"path": "worklist/run_id=s.csv", "size_bytes": 10 * flagged},
                *[{"path": "gradcam/run_id=s/x.jpg", "size_bytes": 1000}] * (2 * flagged),
            ],
        },
        Path("/nowhere"),
        staged_bytes=1000 * images,
    )


def measured(**changes) -> Measured:
    values = {
        "decode": 100.0,
        "inference": 50.0,
        "shares_cores": True,
        "begun": sample_run(20, 3.0, rejected=0, write_s=1.5, start_s=10.0),
        "small": sample_run(20, 1.2, rejected=0),
        "large": sample_run(80, 3.6, rejected=2),
        "rejected_by_reason": {"not_found": 2},
    }
    return Measured(**values | changes)


def options(deadline_hours=None, prices=(), **score) -> PlanOptions:
    return PlanOptions(ScoreOptions("m", "o", "b", **score), deadline_hours, prices, load_s=5.0)


def counts(new=1000, **changes) -> WorkCounts:
    others = dict.fromkeys(("changed", "other_settings", "again", "skipped", "kept"), 0)
    values = {"manifest": new, "new": new, **others, **changes}
    return WorkCounts(**values)


def reckoned(deadline_hours=None, prices=(), work=None, found=None, **score) -> dict:
    given = options(deadline_hours, prices, **score)
    return reckon(given, work or counts(), 80, found or measured(), 2.0, skipped_bytes=30)


# The line


@pytest.mark.parametrize(
    ("small", "large", "expected"),
    [
        ((10, 30.0), (20, 50.0), Line(10.0, 2.0)),
        ((10, 30.0), (20, 20.0), Line(20.0, 0.0)),
        ((10, 30.0), (10, 50.0), Line(0.0, 5.0)),
        ((0, 7.0), (0, 7.0), Line(7.0, 0.0)),
    ],
    ids=["two numbers", "falling", "one number", "none"],
)
def test_line_through_two_points(small, large, expected):
    assert Line.through(small, large) == expected


# Images


def test_expect_takes_the_shares_of_the_sample():
    found = expect(options().score, counts(1000, kept=25), 80, measured())

    assert (found["rejected"], found["rejected_share"]) == (25, 0.025)
    assert found["scored"] == 1000 - 25 + 25
    low, high = found["rejected_share_95"]
    assert 0 < low < 0.025 < high < 0.1
    assert (found["flagged"], found["drawn"], found["overlays"]) == (500, 500, 1000)


@pytest.mark.parametrize(
    ("limits", "drawn"), [({"gradcam_limit": 60}, 60), ({"gradcam_top": 0}, 0)]
)
def test_expect_draws_no_more_than_it_may(limits, drawn):
    found = expect(options(**limits).score, counts(), 80, measured())

    assert (found["drawn"], found["overlays"]) == (drawn, 2 * drawn)


@pytest.mark.parametrize(("budget", "listed"), [(None, 488), (0.29, 290), (7, 7), (900, 488)])
def test_expect_lists_what_the_review_budget_allows(budget, listed):
    assert expect(options(review_budget=budget).score, counts(), 80, measured())["listed"] == listed


# Time


def test_reckon_seconds_are_those_of_the_whole_job():
    found = reckoned(gradcam_limit=100)

    # 40 ms an image by the two warm runs; 3.0 - 20 * 0.04 s more in a process that has begun.
    assert found["rates"]["score"] == pytest.approx(25.0)
    assert found["seconds"] == pytest.approx(
        {
            "start": 5.0 + 2.0 + 10.0,
            "score": 2.2 + 1000 * 0.04,
            "draw": 0.3 + 100 * 0.1,
            "write": 1.5,
            "report": 0.0,
            "all": 17 + 42.2 + 10.3 + 1.5,
        }
    )
    assert found["hours"] == pytest.approx(found["seconds"]["all"] / 3600)
    assert found["rates"]["bottleneck"] == "inference"


def test_reckon_reads_that_are_slower_than_the_job_set_the_pace():
    found = reckoned(found=measured(decode=10.0))

    assert found["rates"]["score"] == pytest.approx(10.0)
    assert found["rates"]["bottleneck"] == "decode"


def test_reckon_workers_take_the_pace_that_they_have_once_they_are_at_work():
    found = reckoned(found=measured(decode=10.0, steady_s=0.02), workers=2)

    assert found["rates"]["score"] == pytest.approx(50.0)
    # 3.0 s of the run that began, less its 20 images.
    assert found["seconds"]["score"] == pytest.approx(2.6 + 1000 * 0.02)


def test_reckon_beside_an_accelerator_takes_what_was_measured():
    found = reckoned(found=measured(inference=26.0, shares_cores=False))

    assert found["rates"]["score"] == pytest.approx(25.0)


# Machines and money


def test_reckon_deadline_tells_the_fewest_machines_that_make_it():
    # 50 s of images and drawing; beside them each takes 21 s, of 36.
    found = reckoned(deadline_hours=0.01, gradcam_limit=100)

    assert found["machines"] == 4
    assert found["deadline_hours"] == 0.01


def test_reckon_deadline_before_the_first_image_is_refused():
    with pytest.raises(InputError, match="--deadline-hours must leave time after the 21 s"):
        reckoned(deadline_hours=0.005)


def test_reckon_cost_is_of_this_run_and_of_a_million_in_one():
    price = Price("m", 3.6, "USD", datetime.date(2026, 11, 22), "a list")
    (found,) = reckoned(prices=[price], gradcam_limit=100)["prices"]

    assert found["cost"] == pytest.approx(0.001 * (17 + 42.2 + 10.3 + 1.5))
    assert found["cost_per_million"] == pytest.approx(0.001 * (40_000 + 100 * 0.1))
    assert (found["name"], found["date"], found["source"]) == ("m", "2026-11-22", "a list")


# Disk


def test_reckon_disk_is_that_of_the_rows_and_overlays_to_come():
    found = reckoned(gradcam_limit=100)["disk_bytes"]

    assert found == {
        "scores": 5000 + 700 * 975,
        "rejects": 4000 + 100 * 25,
        "gradcam": 200 * 1000,
        "worklist": 10 * 488,
        "report": 0,
        "skipped": 30,
        "published": 687_500 + 6500 + 200_000 + 4880 + 30,
        "staged": 1_000_000,
    }
