"""Metrics under weights, against scikit-learn and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

from model import metrics
from model.metrics import (
    brier_score,
    calibration_bins,
    calibration_error,
    flag_metrics,
    ranking_metrics,
)

_LEVELS = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0]


@st.composite
def _weighted(draw):
    """Few images of few levels, so that ties are many, and four weightings of them."""
    count = draw(st.integers(2, 25))

    def column(values):
        return draw(st.lists(values, min_size=count, max_size=count))

    scores = np.array(column(st.sampled_from(_LEVELS)), np.float32)[:, np.newaxis]
    labels = np.array(column(st.booleans()))[:, np.newaxis]
    weights = np.array([column(st.integers(0, 3)) for _ in range(4)], np.uint16)
    return scores, labels, weights


def _repeated(example, sample):
    """Returns scores and labels with each image as often as its weight says."""
    scores, labels, weights = example
    return tuple(np.repeat(values[:, 0], weights[sample]) for values in (scores, labels))


@given(_weighted())
@settings(deadline=None, max_examples=100)
def test_ranking_metrics_are_those_of_scikit_learn_on_repeated_images(example):
    area, precision = ranking_metrics(*example)
    for sample in range(4):
        scores, labels = _repeated(example, sample)
        both = labels.any() and not labels.all()
        expected = roc_auc_score(labels, scores) if both else np.nan
        assert area[sample, 0] == pytest.approx(expected, abs=1e-12, nan_ok=True)
        expected = average_precision_score(labels, scores) if labels.any() else np.nan
        assert precision[sample, 0] == pytest.approx(expected, abs=1e-12, nan_ok=True)


@given(_weighted())
@settings(deadline=None, max_examples=25)
def test_flag_metrics_and_brier_are_those_of_scikit_learn_with_sample_weights(example):
    scores, labels, weights = example
    recall, precision = flag_metrics(scores, labels, np.array([0.25], np.float32), weights)
    with np.errstate(invalid="ignore"):
        brier = brier_score(scores, labels, weights)
    for sample in np.flatnonzero(weights.any(axis=1)):
        weight = weights[sample]
        flagged = scores[:, 0] >= 0.25
        options = {"sample_weight": weight, "zero_division": np.nan}
        for value, reference in ((recall, recall_score), (precision, precision_score)):
            expected = reference(labels[:, 0], flagged, **options)
            assert value[sample, 0] == pytest.approx(expected, nan_ok=True)
        expected = brier_score_loss(
            labels[:, 0], scores[:, 0], sample_weight=weight, pos_label=True, labels=[0, 1]
        )
        assert brier[sample, 0] == pytest.approx(expected)


def test_ranking_metrics_without_weights_count_each_image_once():
    scores, labels = np.float32([[0.9], [0.8], [0.8], [0.1]]), np.array([[1], [0], [1], [0]], bool)
    area, precision = ranking_metrics(scores, labels)
    # Of four pairs three are won and one tied; precision 1 at .9, then 2 of 3.
    assert area.tolist() == [[0.875]]
    assert precision.tolist() == [[pytest.approx((1 + 2 / 3) / 2)]]


def test_ranking_metrics_in_chunks_are_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    scores = rng.random((50, 3), np.float32)
    labels = rng.random((50, 3)) < 0.3
    weights = rng.integers(0, 4, (11, 50)).astype(np.uint16)
    whole = ranking_metrics(scores, labels, weights)
    monkeypatch.setattr(metrics, "_CHUNK_WEIGHTS", 150)
    np.testing.assert_array_equal(ranking_metrics(scores, labels, weights), whole)


def test_flag_metrics_compare_in_float32():
    # As float64 0.7 lies above 0.7 as float32, which would then not be flagged.
    scores = np.array([[0.7], [np.nextafter(np.float32(0.7), np.float32(0))]], np.float32)
    recall, precision = flag_metrics(scores, np.array([[True], [True]]), np.array([0.7]))
    assert (recall[0, 0], precision[0, 0]) == (0.5, 1.0)


def test_calibration_error_by_hand():
    scores = np.repeat(np.arange(10, dtype=np.float32) / 10, 2)[:, np.newaxis]
    labels = np.zeros((20, 1), bool)
    labels[::2] = True
    # Ten bins of two images, half of them positive: mean of |score - 1/2|.
    assert calibration_error(scores, labels)[0, 0] == pytest.approx(0.25, abs=1e-7)
    # Without the images that are no positives: mean of 1 - score.
    assert calibration_error(scores, labels, labels.T)[0, 0] == pytest.approx(0.55, abs=1e-7)


def test_calibration_error_of_the_truth_is_near_nought():
    scores = np.random.default_rng(0).random((40_000, 1), np.float32) ** 4
    labels = np.random.default_rng(1).random((40_000, 1)) < scores
    assert calibration_error(scores, labels)[0, 0] < 0.006
    assert calibration_error(scores / 2, labels)[0, 0] == pytest.approx(0.1, abs=0.006)


def test_calibration_bins_are_of_equal_size_and_keep_ties_together():
    assert np.bincount(calibration_bins(np.arange(50, dtype=np.float32))).tolist() == [5] * 10
    assert len(set(calibration_bins(np.zeros(50, np.float32)))) == 1
