"""Metrics of many findings under many weightings of the images at once.

A bootstrap sample is a weight an image, so an interval is a metric under a thousand
weightings. Images are ranked once a finding; what is left are sums over levels of that
ranking, and a sparse product takes those for a hundred weightings at a time.

Arguments all functions share:
  scores: float32 `(images, findings)`, 0 to 1.
  labels: bool `(images, findings)`.
  weights: `(samples, images)`, 0 or more, as `model.bootstrap.patient_weights` gives
    them; None for one sample in which every image counts once.
All return float64 `(samples, findings)`, NaN where a sample leaves a metric undefined.
"""

from collections.abc import Iterator

import numpy as np
from scipy import sparse

CALIBRATION_BINS = 10
"""Bins of `calibration_error`, each with about as many images as the next."""

_CHUNK_WEIGHTS = 4_000_000
"""Weights held as float64 at a time: 32 MB."""


def ranking_metrics(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the area under the ROC curve and the average precision.

    The area is the share of pairs of a positive and a negative image in which the
    positive one has the higher score; equal scores count half. It is NaN without a
    positive or without a negative image. Average precision is the mean, over the
    positives, of the precision at their score; NaN without a positive image.

    References: Fawcett 2006, "An introduction to ROC analysis",
    https://doi.org/10.1016/j.patrec.2005.10.010; scikit-learn's `roc_auc_score` and
    `average_precision_score` define both the same way.
    """
    rankings = [_Ranking(scores[:, k], labels[:, k]) for k in range(scores.shape[1])]
    areas = np.empty((1 if weights is None else len(weights), len(rankings)))
    precisions = np.empty_like(areas)
    for samples, chunk in _chunks(weights, len(scores)):
        for k, ranking in enumerate(rankings):
            areas[samples, k], precisions[samples, k] = ranking.measure(chunk)
    return areas, precisions


class _Ranking:
    """The images of one finding by level, which is all that the ranking metrics see.

    The scores that positive images have are the levels, the highest first. A
    negative image belongs to the highest level that is not above it, and those
    below all levels to one more. How the negatives between two levels are ranked
    among themselves changes neither metric.
    """

    def __init__(self, scores: np.ndarray, positive: np.ndarray):
        """Takes float32 and bool `(images,)`."""
        levels = np.unique(scores[positive])
        level = len(levels) - np.searchsorted(levels, scores, side="right")
        tied = ~positive & np.isin(scores, levels)
        self._positive, self._negative, self._tied = (
            _level_matrix(level, chosen, len(levels) + 1) for chosen in (positive, ~positive, tied)
        )

    def measure(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns area and average precision, `(samples,)`, for `(images, samples)`."""
        positive, tied = self._positive @ weights, self._tied @ weights
        hits = np.cumsum(positive, axis=0)
        false_alarms = np.cumsum(self._negative @ weights, axis=0)
        # Negatives below a positive are won, and those of its score by half.
        won = false_alarms[-1] - false_alarms + tied / 2
        flags = hits + false_alarms
        precision = np.divide(hits, flags, out=np.zeros_like(hits), where=flags > 0)
        with np.errstate(invalid="ignore"):
            area = _dot(positive, won) / (hits[-1] * false_alarms[-1])
            return area, _dot(positive, precision) / hits[-1]


def _level_matrix(level: np.ndarray, chosen: np.ndarray, levels: int) -> sparse.csr_array:
    """Returns float64 `(levels, images)`: 1 where a chosen image is of a level."""
    images = np.flatnonzero(chosen)
    ones = np.ones(len(images))
    return sparse.csr_array((ones, (level[images], images)), shape=(levels, len(level)))


def _dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the products of columns, `(columns,)`."""
    return np.einsum("ij,ij->j", first, second)


def flag_metrics(
    scores: np.ndarray,
    labels: np.ndarray,
    thresholds: np.ndarray,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns recall and precision where scores at or above the threshold are flagged.

    Recall is NaN without a positive image, precision without a flagged one.

    Args:
      thresholds: float32 `(findings,)`; compared in float32, as the scores are.
      scores, labels, weights: See the module.
    """
    flagged = scores >= thresholds.astype(np.float32)
    hits, positives, flags = (
        _weighted_sums(values, weights) for values in (flagged & labels, labels, flagged)
    )
    with np.errstate(invalid="ignore"):
        return hits / positives, hits / flags


def brier_score(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Returns the mean squared distance of the scores, read as probabilities, from the labels."""
    squares = (scores.astype(np.float64) - labels) ** 2
    return _weighted_sums(squares, weights) / _total_weights(weights, len(scores))


def calibration_error(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Returns the expected calibration error over `CALIBRATION_BINS` bins.

    It is the mean distance between a bin's mean score and its share of positives,
    weighted by images. Bins hold equally many images, except that images of one
    score stay together: most findings are rare, and in bins of equal width nearly
    all images would fall in the first.

    References: Naeini et al. 2015, "Obtaining well calibrated probabilities using
    Bayesian binning", https://doi.org/10.1609/aaai.v29i1.9602.
    """
    gaps = scores.astype(np.float64) - labels
    errors = [
        np.abs(_weighted_sums(_bins(scores[:, k]) * gaps[:, k, np.newaxis], weights)).sum(axis=1)
        for k in range(scores.shape[1])
    ]
    return np.stack(errors, axis=1) / _total_weights(weights, len(scores))


def calibration_bins(scores: np.ndarray) -> np.ndarray:
    """Returns int `(images,)`: the bin of each image, from 0, for one finding."""
    shares = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
    values = scores.astype(np.float64)
    return np.searchsorted(np.quantile(values, shares), values)


def _bins(scores: np.ndarray) -> np.ndarray:
    return calibration_bins(scores)[:, np.newaxis] == np.arange(CALIBRATION_BINS)


def _weighted_sums(values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Returns float64 `(samples, columns)` from `(images, columns)`."""
    columns = values.astype(np.float64)
    chunks = _chunks(weights, len(values))
    return np.concatenate([chunk.T @ columns for _, chunk in chunks])


def _total_weights(weights: np.ndarray | None, images: int) -> np.ndarray:
    """Returns float64 `(samples, 1)`."""
    return _weighted_sums(np.ones((images, 1)), weights)


def _chunks(weights: np.ndarray | None, images: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields some samples at a time, and their weights as float64 `(images, samples)`."""
    if weights is None:
        yield slice(0, 1), np.ones((images, 1))
        return
    step = max(_CHUNK_WEIGHTS // max(images, 1), 1)
    for start in range(0, len(weights), step):
        chosen = slice(start, start + step)
        yield chosen, np.ascontiguousarray(weights[chosen].T, np.float64)
