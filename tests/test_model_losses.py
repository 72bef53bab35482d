"""The losses: what each weighs, by hand."""

import numpy as np
import pytest

from model.losses import build_loss
from model.training_config import Loss

_LABELS = np.array([[True] + [False] * 14, [False] * 15, [True] * 2 + [False] * 13])
"""Class 0 has 2 positives of 3, class 1 has 1 of 3, the others none."""


def _losses(loss, y_true, probability):
    """Returns the loss of an image whose 15 classes all have `probability`."""
    logit = np.log(probability / (1 - probability))
    truth = np.array([y_true], np.float32)
    return float(np.mean(build_loss(loss, _LABELS)(truth, np.full((1, 15), logit, np.float32))))


_POSITIVE, _NEGATIVE = [1.0] * 15, [0.0] * 15


def test_bce_is_the_mean_cross_entropy():
    assert _losses(Loss("bce"), _POSITIVE, 0.25) == pytest.approx(-np.log(0.25), rel=1e-5)
    assert _losses(Loss("bce"), _NEGATIVE, 0.25) == pytest.approx(-np.log(0.75), rel=1e-5)


def test_focal_without_balancing_ignores_alpha():
    for alpha in (0.25, 0.9):
        loss = Loss("focal", gamma=2.0, alpha=alpha)
        expected = 0.75**2 * -np.log(0.25)
        assert _losses(loss, _POSITIVE, 0.25) == pytest.approx(expected, rel=1e-5)
        expected = 0.25**2 * -np.log(0.75)
        assert _losses(loss, _NEGATIVE, 0.25) == pytest.approx(expected, rel=1e-5)


def test_focal_with_balancing_weighs_positives_by_alpha():
    loss = Loss("focal", gamma=2.0, alpha=0.25, class_balancing=True)
    expected = 0.25 * 0.75**2 * -np.log(0.25)
    assert _losses(loss, _POSITIVE, 0.25) == pytest.approx(expected, rel=1e-5)
    expected = 0.75 * 0.25**2 * -np.log(0.75)
    assert _losses(loss, _NEGATIVE, 0.25) == pytest.approx(expected, rel=1e-5)


def test_focal_gamma_zero_is_bce():
    loss = Loss("focal", gamma=0.0)
    assert _losses(loss, _POSITIVE, 0.3) == pytest.approx(_losses(Loss("bce"), _POSITIVE, 0.3))


def test_weighted_bce_weighs_a_positive_as_negatives_outnumber_it():
    loss = Loss("weighted_bce")
    # Weights 1/2 and 2, and 3 of 1 where there is no positive.
    expected = -np.log(0.25) * (0.5 + 2 + 13 * 3) / 15
    assert _losses(loss, _POSITIVE, 0.25) == pytest.approx(expected, rel=1e-5)
    assert _losses(loss, _NEGATIVE, 0.25) == pytest.approx(-np.log(0.75), rel=1e-5)


@pytest.mark.parametrize("kind", ["focal", "bce", "weighted_bce"])
def test_losses_of_extreme_logits_are_finite(kind):
    logits = np.array([[-200.0, 200.0] * 7 + [0.0]], np.float32)
    for truth in (_POSITIVE, _NEGATIVE):
        value = np.mean(build_loss(Loss(kind), _LABELS)(np.array([truth], np.float32), logits))
        assert np.isfinite(value)
