"""The benchmark measures what it says, on the images that it was given."""

import csv
import time

import numpy as np
import pytest

from model.bundle import demo_bundle_path
from pipeline import benchmark
from pipeline.benchmark import (
    BenchmarkOptions,
    Measurement,
    Stage,
    Workbench,
    measure_in_turn,
    rates_of,
    ratios_of,
)
from schemas.errors import InputError


def options(manifest, **changes) -> BenchmarkOptions:
    values = {
        "manifest": str(manifest),
        "bundle": demo_bundle_path(),
        "images": 6,
        "repeats": 1,
        "batch_size": 4,
        "precision": "float32",
        "decode_threads": 2,
    }
    return BenchmarkOptions(**values | changes)


@pytest.fixture
def one_scorer(monkeypatch, demo_scorer):
    """Spares the tests the making of a scorer for each mode of test-time augmentation."""
    monkeypatch.setattr(benchmark, "_scorers", lambda *_: [("none", demo_scorer)])


# Measuring


def test_measure_in_turn_calls_all_once_to_warm_up_and_then_in_turn():
    calls, done = [], []
    stages = [Stage(name, 1, lambda name=name: calls.append(name)) for name in "ab"]

    measured = measure_in_turn(stages, 3, done.append)

    assert "".join(calls) == "".join(done) == "ab" * 4
    assert [len(measured[name].seconds) for name in "ab"] == [3, 3]


def test_measure_in_turn_tells_waiting_from_working():
    def work():
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    stages = [Stage("sleep", 1, lambda: time.sleep(0.05)), Stage("work", 1, work)]
    measured = measure_in_turn(stages, 1)

    assert measured["sleep"].seconds[0] >= 0.05 > 2 * measured["sleep"].cpu_seconds[0]
    assert measured["work"].cpu_seconds[0] >= 0.05


def test_measure_in_turn_believes_a_stage_with_clocks_of_its_own():
    measured = measure_in_turn([Stage("run", 10, lambda: {"score": 2.0, "write": 0.5})], 2)

    assert measured == {
        "score": Measurement(10, [2.0, 2.0]),
        "write": Measurement(10, [0.5, 0.5]),
    }


def test_measurement_rate_is_of_the_median_repeat():
    values = Measurement(60, (2.0, 6.0, 3.0), (1.0, 9.0, 3.0)).to_json()

    assert values == {
        "images": 60,
        "images_per_second": 20.0,
        "slowest": 10.0,
        "fastest": 30.0,
        "seconds": [2.0, 6.0, 3.0],
        "cpu_ms_per_image": 50.0,
    }


# What the measurements say


def measured(**rates: float) -> dict[str, Measurement]:
    """One second each, by the names of the module's constants."""
    return {getattr(benchmark, name): Measurement(rate, (1.0,)) for name, rate in rates.items()}


def test_ratios_are_those_of_the_rates():
    stages = measured(
        DECODE=100, INFERENCE=50, WITHOUT_MAPS=52, END_TO_END=32, PUBLISHED=30,
        TTA_ALL=10, TTA_BORDERLINE=25,
    )  # fmt: skip

    assert ratios_of(stages, 0.2) == pytest.approx(
        {
            "decode and inference in turn, images/s": 100 / 3,
            "end to end over that": 0.96,
            "published over that": 0.9,
            "cost of the maps": 0.04,
            "cost of --tta all": 5.0,
            "cost of --tta borderline": 2.0,
            "share of images that it looks at twice": 0.2,
            "cost by that share": 1.8,
        }
    )


def test_rates_of_give_back_the_time_that_was_measured():
    stages = measured(DECODE=100, INFERENCE=50, PUBLISHED=30, START=1, OVERLAYS=4)
    rates = rates_of(stages)

    assert rates.other_s == pytest.approx(1 / 30 - 0.03)
    assert rates.run_s(300, 4) == pytest.approx(1 + 10 + 1)


# The stages


def test_workbench_measures_every_stage_on_the_images_of_the_manifest(
    phantoms, tmp_path, one_scorer
):
    bench = Workbench(options(phantoms / "manifest.csv"), tmp_path)
    names = [stage.name for stage in bench.stages()]
    found = measure_in_turn(bench.stages(), 1)

    assert names == ["decode", "inference", "inference, no maps", "overlays", "end to end"]
    assert set(found) == {*names, "end to end, published", "start"}
    assert {found[name].images for name in names if name != "overlays"} == {6}
    assert all(stage.rate > 0 for stage in found.values())
    assert len(list((tmp_path / "_staging/drawing").rglob("*.jpg"))) >= found["overlays"].images


def test_workbench_too_few_images_come_again_under_other_ids(phantoms, tmp_path, one_scorer):
    with open(phantoms / "manifest.csv", newline="") as file:
        uris = [str(phantoms / row["uri"]) for row in csv.DictReader(file)]
    bench = Workbench(options(phantoms / "manifest.csv", images=30), tmp_path)

    with open(bench.manifest, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["uri"] for row in rows] == (uris * 3)[:30]
    assert len({row["image_id"] for row in rows}) == 30


def test_workbench_image_that_cannot_be_scored_is_named_by_its_row(tmp_path):
    (tmp_path / "good").mkdir()
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "list.csv").write_text("uri\nbad.png\n")

    with pytest.raises(InputError, match="row 1 of the manifest is rejected as not_an_image"):
        Workbench(options(tmp_path / "list.csv"), tmp_path / "good")


def test_workbench_without_maps_gives_the_scores_of_the_network(demo_scorer, squares):
    (scores,) = benchmark._without_maps(options("-"))(squares)
    np.testing.assert_allclose(scores, demo_scorer.score(squares).scores, atol=1e-5)
