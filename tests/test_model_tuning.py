"""Choosing thresholds: against a plain search, and what few positives come to."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.bootstrap import interval, patient_weights
from model.thresholds import threshold_vector
from model.tuning import fewest_positives, tune_thresholds, wilson_interval, with_thresholds
from schemas.errors import InputError
from schemas.findings import ABNORMAL_FINDINGS, FINDINGS
from tests.fakes import make_bundle, make_thresholds


def _tune(scores, positive, target=0.8, **options):
    """Returns the threshold of a finding with these scores and labels."""
    repeated = (np.repeat(np.asarray(values)[:, None], 15, axis=1) for values in (scores, positive))
    tuned = tune_thresholds(*repeated, target, **options)
    assert list(tuned) == list(ABNORMAL_FINDINGS)
    return tuned["Mass"]


@st.composite
def _images(draw, positives):
    """Draws float32 scores with ties, labels with enough positives, and patients."""
    count = draw(st.integers(positives, 2 * positives))
    negatives = draw(st.integers(0, 20))
    levels = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])
    scores = draw(st.lists(levels, min_size=count + negatives, max_size=count + negatives))
    # The first positives are of patients of their own, the others of anyone's.
    others = st.lists(
        st.integers(0, 2 * positives),
        min_size=count + negatives - positives,
        max_size=count + negatives - positives,
    )
    patients = [*range(positives), *draw(others)]
    labels = [True] * count + [False] * negatives
    return np.array(scores, np.float32), np.array(labels), np.array(patients)


@given(_images(positives=10), st.sampled_from([0.1, 0.5, 0.8, 0.95, 1.0]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_tune_thresholds_point_is_the_highest_score_that_reaches_the_recall(images, target, known):
    scores, positive, patients = images
    tuned = _tune(scores, positive, target, patients=patients if known else None, samples=20)
    recall_at = {
        float(value): (scores[positive] >= value).mean() for value in np.unique(scores[positive])
    }
    assert tuned.threshold == max(v for v, recall in recall_at.items() if recall >= target - 1e-9)
    assert tuned.recall == recall_at[tuned.threshold]
    assert tuned.precision == positive[scores >= np.float32(tuned.threshold)].mean()
    assert tuned.positives == positive.sum()
    assert tuned.rule == "point"


@given(_images(positives=14), st.sampled_from([0.3, 0.5, 0.75]), st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_tune_thresholds_conservative_is_the_highest_whose_bootstrapped_low_end_reaches_it(
    images, target, seed
):
    scores, positive, patients = images
    tuned = _tune(
        scores, positive, target, policy="conservative", patients=patients, samples=40, seed=seed
    )
    weights = patient_weights(patients, 40, seed)[:, positive]
    interval_at = {}
    for value in np.unique(scores[positive]).tolist():
        recalls = [
            np.average(scores[positive] >= value, weights=sample) if sample.any() else np.nan
            for sample in weights
        ]
        interval_at[value] = interval(np.array(recalls))
    reaching = [value for value, (low, _) in interval_at.items() if low >= target - 1e-9]
    assert tuned.threshold == max(reaching)
    assert tuned.rule == "conservative"
    if tuned.recall < 1:
        assert (tuned.recall_low, tuned.recall_high) == pytest.approx(interval_at[tuned.threshold])
        assert tuned.interval == "bootstrap_patients"


def test_tune_thresholds_four_of_five_positives_reach_eighty_percent():
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.1] * 2 + [0.65, 0.65], np.float32)
    tuned = _tune(scores, [True] * 10 + [False] * 2)
    assert tuned.threshold == np.float32(0.6)
    assert (tuned.recall, tuned.precision) == (0.8, 0.8)
    assert (tuned.recall_low, tuned.recall_high) == wilson_interval(8, 10)
    assert tuned.interval == "wilson_images"


def test_tune_thresholds_interval_by_patients_is_wider_than_by_images():
    rng = np.random.default_rng(1)
    severity = rng.normal(size=60)
    scores = 1 / (1 + np.exp(-np.repeat(severity, 6) - rng.normal(size=360) / 4))
    patients = np.repeat(np.arange(60), 6)
    labels = np.ones(360, bool)
    by_patient = _tune(scores.astype(np.float32), labels, patients=patients)
    by_image = _tune(scores.astype(np.float32), labels, patients=np.arange(360))
    by_wilson = _tune(scores.astype(np.float32), labels)
    assert by_patient.threshold == by_image.threshold == by_wilson.threshold
    # Six images that are nearly one: close to sqrt(6) = 2.4 times as wide.
    width = by_patient.recall_high - by_patient.recall_low
    for other in (by_image, by_wilson):
        assert 1.8 < width / (other.recall_high - other.recall_low) < 2.6


def test_tune_thresholds_conservative_flags_more_with_fewer_patients():
    rng = np.random.default_rng(2)
    scores = np.repeat(rng.random(40), 10).astype(np.float32)
    labels = np.ones(400, bool)
    options = {"policy": "conservative", "samples": 400}
    alone = _tune(scores, labels, patients=np.arange(400), **options)
    shared = _tune(scores, labels, patients=np.repeat(np.arange(40), 10), **options)
    point = _tune(scores, labels, patients=np.arange(400), samples=400)
    assert point.recall < alone.recall < shared.recall
    assert point.recall_low < 0.8 <= min(alone.recall_low, shared.recall_low)


def test_tune_thresholds_same_seed_same_thresholds():
    rng = np.random.default_rng(3)
    scores, labels = rng.random((300, 15), np.float32), rng.random((300, 15)) < 0.3
    patients = rng.integers(0, 100, 300).astype(str)
    options = {"policy": "conservative", "patients": patients, "samples": 100}
    assert tune_thresholds(scores, labels, **options) == tune_thresholds(scores, labels, **options)
    other = tune_thresholds(scores, labels, seed=1, **options)
    assert other != tune_thresholds(scores, labels, **options)


@pytest.mark.parametrize(
    ("policy", "patients", "rule"),
    [
        ("point", 9, "fallback_few_positives"),
        ("point", 10, "point"),
        ("conservative", 16, "fallback_few_positives"),
        ("conservative", 17, "conservative"),
    ],
)
def test_tune_thresholds_few_positive_patients_fall_back_to_all_known(policy, patients, rule):
    scores = np.linspace(0.9, 0.1, 3 * patients).astype(np.float32)
    labels = np.ones(len(scores) + 1, bool)
    labels[-1] = False
    scores = np.append(scores, np.float32(0.5))
    owner = np.append(np.repeat(np.arange(patients), 3), 99)
    tuned = _tune(scores, labels, policy=policy, patients=owner, samples=200)
    assert tuned.rule == rule
    if rule == "fallback_few_positives":
        assert tuned.threshold == np.float32(0.1)
        assert (tuned.recall, tuned.positives) == (1.0, 3 * patients)
        assert tuned.precision == 3 * patients / (3 * patients + 1)
        # By patients, whom no bootstrap sample could show a miss of.
        assert (tuned.recall_low, tuned.recall_high) == wilson_interval(patients, patients)
        assert tuned.interval == "wilson_patients"


@pytest.mark.parametrize(("images", "rule"), [(9, "fallback_few_positives"), (10, "point")])
def test_tune_thresholds_without_patients_counts_images(images, rule):
    tuned = _tune(np.linspace(0.1, 0.9, images).astype(np.float32), np.ones(images, bool))
    assert (tuned.rule, tuned.interval) == (rule, "wilson_images")


@pytest.mark.parametrize(
    ("target", "policy", "fewest"),
    [
        (0.8, "point", 10),
        (0.99, "point", 10),
        (0.5, "conservative", 10),
        (0.8, "conservative", 17),
        (0.9, "conservative", 36),
        (0.95, "conservative", 72),
    ],
)
def test_fewest_positives_can_show_the_target_and_one_fewer_could_not(target, policy, fewest):
    assert fewest_positives(target, policy) == fewest
    if policy == "conservative":
        assert target**fewest <= 0.025
        assert target ** (fewest - 1) > 0.025 or fewest == 10


def test_tune_thresholds_without_a_positive_is_refused_by_name():
    labels = np.ones((3, 15), bool)
    labels[:, FINDINGS.index("Hernia")] = False
    with pytest.raises(InputError, match="at least one positive image a finding.*of: Hernia. Add"):
        tune_thresholds(np.zeros((3, 15), np.float32), labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "policy must be point where patients are unknown.*Add patient_id"),
        (
            {"patients": np.arange(3), "target_recall": 1.0},
            "target_recall must be under 1 for policy conservative.*Received: target_recall=1.0",
        ),
    ],
    ids=["no patients", "a recall of 1"],
)
def test_tune_thresholds_conservative_that_cannot_be_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        tune_thresholds(
            np.zeros((3, 15), np.float32), np.ones((3, 15), bool), policy="conservative", **options
        )


def test_wilson_interval_known_values():
    # Newcombe 1998, Table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for (hits, trials), expected in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert wilson_interval(hits, trials) == pytest.approx(expected, abs=5e-5)


def _bundle(*modes):
    return dataclasses.replace(
        make_bundle(),
        thresholds={mode: make_thresholds() for mode in modes},
        metrics={"mean_auc": 0.9, "flag_rate": dict.fromkeys(modes, 0.25)},
        provenance={"images": 7},
    )


@pytest.mark.parametrize(
    ("modes", "tta", "kept"),
    [
        (("none", "borderline", "all"), "none", ["none", "all"]),
        (("none", "borderline", "all"), "borderline", ["none", "borderline", "all"]),
        (("none", "borderline"), "all", ["none", "borderline", "all"]),
        (("all",), "none", ["none", "all"]),
    ],
    ids=["none drops borderline", "borderline", "new mode", "new mode comes first"],
)
def test_with_thresholds_replaces_one_mode_and_what_depends_on_it(modes, tta, kept):
    info, new = _bundle(*modes), make_thresholds(0.25)
    tuned = with_thresholds(info, tta, new, 0.75, {"policy": "point"})
    assert list(tuned.thresholds) == list(tuned.metrics["flag_rate"]) == kept
    for mode in kept:
        vector = threshold_vector(tuned.thresholds[mode])
        assert vector[0] == (0.25 if mode == tta else 0.5)
        assert tuned.metrics["flag_rate"][mode] == (0.75 if mode == tta else 0.25)
    assert tuned.metrics["mean_auc"] == 0.9
    assert tuned.provenance == {"images": 7, "thresholds": {tta: {"policy": "point"}}}
    assert tuned.model_id == info.model_id
    assert info.thresholds.keys() == set(modes)


@pytest.mark.parametrize(("tta", "lost"), [("none", True), ("all", False)])
def test_with_thresholds_drops_what_was_measured_at_the_old_ones(tta, lost):
    measured = {"threshold": 0.5, "recall": 0.8, "recall_low": 0.7, "recall_high": 0.9}
    measured |= {"precision": 0.3, "precision_low": 0.2, "precision_high": 0.4, "confusion": {}}
    ranked = {"auc": 0.9, "auc_low": 0.8, "positives": 7}
    metrics = {"mean_auc": 0.9, "flags_per_image": 3.0, "findings": {"Mass": ranked | measured}}
    info = dataclasses.replace(_bundle("none"), metrics=metrics)
    tuned = with_thresholds(info, tta, make_thresholds(), 0.75, {})
    expected = {"mean_auc": 0.9, "findings": {"Mass": ranked}} if lost else metrics
    assert tuned.metrics == expected | {"flag_rate": {tta: 0.75}}


def test_tune_thresholds_real_scores_conservative_low_ends_reach_the_target(chexnet, nih_labels):
    from model.score_table import read_labelled_scores

    images = read_labelled_scores(str(chexnet), str(nih_labels), score_prefix="prob_")
    scores, labels = (
        np.insert(values, FINDINGS.index("No Finding"), 0, axis=1)
        for values in (images.scores, images.labels)
    )
    options = {"patients": images.patients, "samples": 200}
    point = tune_thresholds(scores, labels, **options)
    safe = tune_thresholds(scores, labels, policy="conservative", **options)
    for name in ABNORMAL_FINDINGS:
        assert 0.8 <= point[name].recall < 0.8 + 1 / point[name].positives
        assert point[name].recall_low < 0.8 <= safe[name].recall_low < 0.83
        assert safe[name].threshold < point[name].threshold
    assert (safe["Hernia"].rule, safe["Hernia"].positives) == ("conservative", 42)


@pytest.fixture
def chexnet(nih_labels):
    """14 probabilities for each of 22,433 NIH images, of a public model."""
    path = nih_labels.with_name("chexnet_predictions.csv.gz")
    if not path.exists():
        pytest.skip("needs real data: no shared/data/chexnet_predictions.csv.gz")
    return path
