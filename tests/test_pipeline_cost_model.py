"""What an archive takes, worked out by hand."""

import pytest

from pipeline.cost_model import Rates, estimate


def rates(**changes) -> Rates:
    values = {
        "decode": 100.0,
        "inference": 50.0,
        "shares_cores": True,
        "other_s": 0.002,
        "draw_s": 0.5,
        "start_s": 20.0,
    }
    return Rates(**values | changes)


def test_image_s_where_cores_are_shared_is_the_sum():
    assert rates().image_s == pytest.approx(0.010 + 0.020 + 0.002)


@pytest.mark.parametrize(
    ("decode", "inference", "expected"),
    [(100.0, 1000.0, 0.010 + 0.002), (100.0, 50.0, 0.020)],
    ids=["decode sets the pace", "inference does"],
)
def test_image_s_beside_an_accelerator_is_that_of_the_slower(decode, inference, expected):
    beside = rates(decode=decode, inference=inference, shares_cores=False)
    assert beside.image_s == pytest.approx(expected)


@pytest.mark.parametrize(
    ("decode", "inference", "expected"), [(10, 20, "decode"), (20, 10, "inference")]
)
def test_bottleneck_is_what_takes_longer(decode, inference, expected):
    assert rates(decode=decode, inference=inference).bottleneck == expected


def test_run_s_counts_start_images_and_drawings():
    assert rates().run_s(1000, 10) == pytest.approx(20 + 1000 * 0.032 + 10 * 0.5)


def test_estimate_one_machine_without_a_price_has_no_cost():
    found = estimate(rates(), 1_000_000, 0)

    assert found.hours == pytest.approx((20 + 32_000) / 3600)
    assert (found.machines, found.cost, found.cost_per_million) == (1, None, None)


def test_estimate_within_hours_names_the_fewest_machines_that_finish():
    # 32,000 s of work; each machine has an hour less its 20 s of start.
    found = estimate(rates(), 1_000_000, 0, within_hours=1, price_per_hour=3.6)

    assert found.machines == 9  # 8.94 of 3,580 s
    assert found.cost == pytest.approx((32_000 + 9 * 20) * 0.001)
    assert found.cost_per_million == pytest.approx(32.0)


def test_estimate_cost_per_million_does_not_depend_on_the_archives_size():
    small = estimate(rates(), 1000, 100, price_per_hour=3.6)
    large = estimate(rates(), 100_000, 10_000, price_per_hour=3.6)

    assert small.cost_per_million == pytest.approx(large.cost_per_million)
    assert small.cost_per_million == pytest.approx(1e6 * (0.032 + 0.05) * 0.001)


def test_estimate_hours_that_the_start_uses_up_are_refused():
    with pytest.raises(ValueError, match="after the start of 20 s. Received: within_hours=0.005"):
        estimate(rates(), 1000, 0, within_hours=0.005)
