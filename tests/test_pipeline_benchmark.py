"""What was measured is what happened, and its ratios are those of the rates."""

import time

import pytest

from pipeline import benchmark
from pipeline.benchmark import Measurement, Stage, measure_in_turn, rates_of, ratios_of

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
