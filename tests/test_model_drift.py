"""Drift: a night like the last is no alarm, another scanner or other patients are one."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp

from model.drift import Observations, Statistic, floors, measure_drift
from schemas.findings import ABNORMAL_FINDINGS, FINDINGS, parse_labels


def take(run, chosen):
    """Returns some images of a run: a mask, or places."""
    return Observations(
        *(
            {name: values[chosen] for name, values in columns.items()}
            for columns in (run.numbers, run.flags, run.categories)
        ),
        run.patients[chosen],
    )


def night(images, seed):
    """Returns a night in which the images of a patient are alike, two of each on average."""
    rng = np.random.default_rng(seed)
    patients = rng.integers(0, images // 2, images)
    illness = rng.normal(size=images)[patients]
    scores = {
        finding: 1 / (1 + np.exp(2 + 0.1 * k - 0.8 * illness - rng.normal(size=images)))
        for k, finding in enumerate(FINDINGS)
    }
    return Observations(
        numbers={**scores, "mean_intensity": rng.normal(120, 20, images) + illness},
        flags={finding: scores[finding] >= 0.3 for finding in ABNORMAL_FINDINGS},
        categories={"view_position": np.where(rng.random(images) < 0.4, "AP", "PA")},
        patients=patients,
    )


def alarms(then, now):
    return {(found.name, found.statistic) for found in measure_drift(then, now) if found.is_alarm}


def few(*, numbers=None, flags=None, categories=None):
    """Returns a run of one patient an image that has only these columns."""
    columns = [numbers or {}, flags or {}, categories or {}]
    images = max(len(values) for named in columns for values in named.values())
    return Observations(*columns, np.arange(images))


@pytest.mark.parametrize("unit", ["patients", "images"])
def test_measure_drift_halves_of_one_night_raise_no_alarm(unit):
    whole = night(2000, seed=1)
    rng = np.random.default_rng(2)
    false_alarms = []
    for _ in range(20):
        half = rng.random(2000) < 0.5
        half = half[whole.patients] if unit == "patients" else half
        false_alarms += alarms(take(whole, half), take(whole, ~half))
    assert false_alarms == []


def test_measure_drift_brighter_images_are_an_alarm_of_that_column_alone():
    then, now = night(1000, seed=1), night(1000, seed=2)
    brighter = {**now.numbers, "mean_intensity": now.numbers["mean_intensity"] * 1.1}
    now = Observations(brighter, now.flags, now.categories, now.patients)
    assert alarms(then, now) == {
        ("mean_intensity", Statistic.PSI),
        ("mean_intensity", Statistic.KS),
    }


def test_measure_drift_a_finding_that_comes_more_often_is_an_alarm_of_its_flag_rate():
    then, now = night(2000, seed=1), night(2000, seed=2)
    now.flags["Mass"][::5] = True
    (found,) = (change for change in measure_drift(then, now) if change.is_alarm)
    assert (found.name, found.statistic) == ("Mass", Statistic.FLAG_RATE)
    assert found.value == pytest.approx(now.flags["Mass"].mean() - then.flags["Mass"].mean())
    assert 0.01 < found.limit < found.value


def nih_night(frame, images, share_of_ap, seed):
    """Returns images of the NIH's archive, drawn so that this share of them is AP."""
    is_ap = (frame["View Position"] == "AP").to_numpy()
    weights = np.where(is_ap, share_of_ap / is_ap.sum(), (1 - share_of_ap) / (~is_ap).sum())
    drawn = frame.sample(images, weights=weights, random_state=seed)
    labels = [parse_labels(text) for text in drawn["Finding Labels"]]
    return Observations(
        numbers={"age": drawn["Patient Age"].to_numpy(float)},
        flags={name: np.array([name in found for found in labels]) for name in ABNORMAL_FINDINGS},
        categories={
            name: drawn[name].to_numpy(str)
            for name in ("View Position", "Patient Gender", "Finding Labels")
        },
        patients=drawn["Patient ID"].to_numpy(),
    )


def test_measure_drift_more_ap_views_in_real_metadata_are_an_alarm(nih_labels):
    frame = pd.read_csv(nih_labels)
    then = nih_night(frame, 2000, 0.40, seed=1)
    assert alarms(then, nih_night(frame, 2000, 0.40, seed=2)) == set()
    found = alarms(then, nih_night(frame, 2000, 0.57, seed=3))
    assert ("View Position", Statistic.PSI) in found
    assert ("Patient Gender", Statistic.PSI) not in found


def test_measure_drift_psi_of_levels_is_exact_and_new_levels_count_together():
    then = few(categories={"site": np.array(["A"] * 60 + ["B"] * 40)})
    now = few(categories={"site": np.array(["A"] * 30 + ["B"] * 40 + ["C"] * 20 + ["D"] * 10)})
    (found,) = measure_drift(then, now)
    first, second = (np.array(counts) + 0.5 for counts in ((60, 40, 0), (30, 40, 30)))
    first, second = first / first.sum(), second / second.sum()
    assert found.value == pytest.approx(((second - first) * np.log(second / first)).sum())
    assert found.is_alarm


def test_measure_drift_psi_of_numbers_takes_tenths_of_the_earlier_run():
    then = few(numbers={"x": np.arange(1000.0)})
    now = few(numbers={"x": np.arange(1000.0) / 2})
    psi, ks = measure_drift(then, now)
    first = np.full(10, 100.5) / 1005
    second = np.array([200.5] * 5 + [0.5] * 5) / 1005
    assert psi.value == pytest.approx(((second - first) * np.log(second / first)).sum(), abs=0.02)
    assert ks.value == pytest.approx(0.5, abs=0.002)


def test_measure_drift_ks_is_that_of_scipy_at_places_of_the_earlier_run():
    rng = np.random.default_rng(3)
    then, now = rng.normal(size=3000), rng.normal(0.2, size=2000)
    _, ks = measure_drift(few(numbers={"x": then}), few(numbers={"x": now}))
    exact = ks_2samp(then, now).statistic
    assert exact - 0.02 <= ks.value <= exact


def test_measure_drift_limits_shrink_with_the_runs_and_end_at_the_floors():
    limits = {
        images: {found.statistic: found.limit for found in measure_drift(run, run)}
        for images in (200, 5000)
        for run in [night(images, seed=1)]
    }
    assert all(limits[5000][name] < limits[200][name] for name in Statistic)
    large = few(numbers={"x": np.arange(1e5)}, flags={"Mass": np.arange(1e5) < 1e4})
    found = measure_drift(large, large, samples=50)
    assert {change.statistic: change.limit for change in found} == {
        Statistic.PSI: 0.01,
        Statistic.KS: 0.02,
        Statistic.FLAG_RATE: 0.01,
    }
    assert [change.value for change in found] == [0, 0, 0]


def test_measure_drift_of_what_the_earlier_run_has_none_of_needs_more_than_a_few_images():
    then = few(flags={"Hernia": np.zeros(200, bool)}, categories={"site": np.full(200, "A")})
    for images, alarmed in ((4, False), (20, True)):
        few_of_it = np.arange(100) < images
        site = np.where(few_of_it, "B", "A")
        found = measure_drift(then, few(flags={"Hernia": few_of_it}, categories={"site": site}))
        assert [change.is_alarm for change in found] == [alarmed, alarmed]
        least = {change.statistic: change.limit for change in found}
        assert least[Statistic.FLAG_RATE] == 0.08
        assert least[Statistic.PSI] == pytest.approx(0.15)
    assert floors(200, 100)[Statistic.KS] == 0.02


def test_measure_drift_is_the_same_each_time():
    then, now = night(300, seed=1), night(300, seed=2)
    assert measure_drift(then, now) == measure_drift(then, now)


def test_measure_drift_without_images_is_an_error():
    run = night(100, seed=1)
    with pytest.raises(ValueError, match="must have images. Received: 100 then and 0 now"):
        measure_drift(run, take(run, np.zeros(100, bool)))
