"""What scores are worth, measured against labels: the content of `metrics.json`."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from model.bootstrap import interval, patient_weights
from model.metrics import brier_score, calibration_error, flag_metrics, ranking_metrics
from model.score_table import LabelledScores
from model.thresholds import Thresholds, abnormality, threshold_vector
from schemas.errors import InputError
from schemas.findings import ABNORMAL_FINDINGS, ABNORMAL_INDICES, FINDINGS, NO_FINDING

UNKNOWN = "unknown"
"""The subgroup of the images whose attribute is unknown."""


@dataclasses.dataclass(frozen=True)
class _Estimate:
    """A metric of some findings, and what it is in bootstrap samples.

    Attributes:
      value: float64 `(findings,)`, NaN where undefined.
      samples: float64 `(samples, findings)`, likewise.
    """

    value: np.ndarray
    samples: np.ndarray

    def mean(self, columns: list[int]) -> "_Estimate":
        """Returns the mean over findings, undefined where one of them is."""
        return _Estimate(
            self.value[columns].mean(keepdims=True),
            self.samples[:, columns].mean(axis=1, keepdims=True),
        )

    def minus(self, other: "_Estimate") -> "_Estimate":
        """Returns the difference, sample by sample."""
        return _Estimate(self.value - other.value, self.samples - other.samples)

    def to_json(self, name: str, column: int = 0) -> dict[str, float | None]:
        """Returns `name`, `name_low` and `name_high` of one finding; None where undefined."""
        values = (self.value[column], *interval(self.samples[:, column]))
        keys = (name, f"{name}_low", f"{name}_high")
        return {key: _number(value) for key, value in zip(keys, values, strict=True)}


def evaluate(
    table: LabelledScores,
    *,
    thresholds: Thresholds | None = None,
    samples: int = 1000,
    seed: int = 0,
    baseline: LabelledScores | None = None,
    probabilities: np.ndarray | None = None,
) -> dict:
    """Returns every metric of `table`, as JSON values.

    Intervals are two-sided 95% percentile intervals of a bootstrap over patients; a
    sample in which a metric is undefined is left out. A mean over the 14 findings
    is None where one of them has no positive or no negative image.

    Args:
      table: Scores and labels of at least the 14 findings.
      thresholds: Of the 14 findings; with them recall, precision and flags.
      samples: Number of bootstrap samples.
      seed: Of the bootstrap.
      baseline: Other scores of the same images, to compare with; images of one of
        the two only are left out of the comparison.
      probabilities: float32 `(images, findings)`, calibrated, for `abnormality`,
        `brier` and `calibration_error`; without them the scores stand for them.

    Returns:
      See the README; `comparison` is there with `baseline` only, `threshold`,
      `recall`, `precision`, `confusion`, `flag_rate` and `flags_per_image` with
      `thresholds` only.

    Raises:
      InputError: The two tables have no image in common.
    """
    weights = patient_weights(table.patients, samples, seed)
    read_as = table.scores if probabilities is None else probabilities
    area, precision = _ranking(table.scores, table.labels, weights)
    findings = {
        name: {
            "positives": int(table.labels[:, k].sum()),
            **area.to_json("auc", k),
            **precision.to_json("average_precision", k),
        }
        for k, name in enumerate(table.findings)
    }
    _add_errors(findings, read_as, table.labels)
    result = {
        "images": len(table),
        "patients": _count(table.patients),
        "unscored": table.unscored,
        "unlabelled": table.unlabelled,
        "bootstrap": {"samples": samples, "seed": seed, "unit": "patient"},
        "calibrated": probabilities is not None,
        **area.mean(_abnormal_columns(table)).to_json("mean_auc"),
        "findings": findings,
        "abnormality": _abnormality(table, read_as, weights),
    }
    if thresholds is not None:
        result |= _flags(table, thresholds, weights, findings)
    result["subgroups"] = _subgroups(table, weights)
    if baseline is not None:
        result["comparison"] = _comparison(table, baseline, samples, seed)
    return result


def abnormality_scores(table: LabelledScores, probabilities: np.ndarray) -> np.ndarray:
    """Returns float32 `(images,)`: see `model.thresholds.abnormality`.

    Args:
      table: Tells the findings of the columns.
      probabilities: float32 `(images, findings)`.
    """
    every = np.zeros((len(table), len(FINDINGS)), np.float32)
    every[:, [FINDINGS.index(name) for name in table.findings]] = probabilities
    return abnormality(every)


def any_abnormality(table: LabelledScores) -> np.ndarray:
    """Returns bool `(images,)`: one of the 14 findings is labelled."""
    return table.labels[:, _abnormal_columns(table)].any(axis=1)


def label_matrix(table: LabelledScores) -> np.ndarray:
    """Returns bool `(images, 15)` in the order of `FINDINGS`.

    No Finding is what no finding of the 14 is labelled on, also where it has no score.
    """
    labels = np.zeros((len(table), len(FINDINGS)), bool)
    labels[:, ABNORMAL_INDICES] = table.labels[:, _abnormal_columns(table)]
    labels[:, FINDINGS.index(NO_FINDING)] = ~any_abnormality(table)
    return labels


def threshold_values(table: LabelledScores, thresholds: Thresholds) -> np.ndarray:
    """Returns float32 `(findings,)`; infinite for No Finding."""
    return threshold_vector(thresholds)[[FINDINGS.index(name) for name in table.findings]]


def _abnormal_columns(table: LabelledScores) -> list[int]:
    return [table.findings.index(name) for name in ABNORMAL_FINDINGS]


def _ranking(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> tuple[_Estimate, _Estimate]:
    """Returns area under the ROC curve and average precision."""
    values = ranking_metrics(scores, labels)
    resampled = ranking_metrics(scores, labels, weights)
    return tuple(_Estimate(value[0], drawn) for value, drawn in zip(values, resampled, strict=True))


def _add_errors(findings: dict, probabilities: np.ndarray, labels: np.ndarray) -> None:
    """Adds how far probabilities are from labels; without an interval."""
    squares, gaps = brier_score(probabilities, labels)[0], calibration_error(probabilities, labels)
    for k, values in enumerate(findings.values()):
        values |= {"brier": float(squares[k]), "calibration_error": float(gaps[0, k])}


def _abnormality(table: LabelledScores, probabilities: np.ndarray, weights: np.ndarray) -> dict:
    scores = abnormality_scores(table, probabilities)[:, np.newaxis]
    labels = any_abnormality(table)[:, np.newaxis]
    area, _ = _ranking(scores, labels, weights)
    return {"positives": int(labels.sum()), **area.to_json("auc")}


def _flags(
    table: LabelledScores, thresholds: Thresholds, weights: np.ndarray, findings: dict
) -> dict:
    """Returns flags over all findings, and adds to `findings` what thresholds make of each."""
    columns = _abnormal_columns(table)
    scores, labels = table.scores[:, columns], table.labels[:, columns]
    values = threshold_values(table, thresholds)[columns]
    flagged = scores >= values
    metrics = flag_metrics(scores, labels, values)
    resampled = flag_metrics(scores, labels, values, weights)
    recall, precision = (
        _Estimate(value[0], drawn) for value, drawn in zip(metrics, resampled, strict=True)
    )
    for k, name in enumerate(ABNORMAL_FINDINGS):
        findings[name] |= {
            "threshold": float(values[k]),
            **recall.to_json("recall", k),
            **precision.to_json("precision", k),
            "confusion": _confusion(flagged[:, k], labels[:, k]),
        }
    return {
        "flag_rate": float(flagged.any(axis=1).mean()),
        "flags_per_image": float(flagged.sum(axis=1).mean()),
    }


def _confusion(flagged: np.ndarray, positive: np.ndarray) -> dict[str, int]:
    counts = {
        "tp": flagged & positive,
        "fp": flagged & ~positive,
        "fn": ~flagged & positive,
        "tn": ~flagged & ~positive,
    }
    return {name: int(images.sum()) for name, images in counts.items()}


def _subgroups(table: LabelledScores, weights: np.ndarray) -> dict[str, dict]:
    """Returns areas by attribute and its value; patients are drawn from all, as before."""
    return {
        attribute: {
            value or UNKNOWN: _subgroup(table, np.flatnonzero(values == value), weights)
            for value in sorted(set(values), key=lambda value: (value == "", value))
        }
        for attribute, values in table.attributes.items()
    }


def _subgroup(table: LabelledScores, images: np.ndarray, weights: np.ndarray) -> dict:
    part = table.select(images)
    # By way of the transpose, which keeps the samples of an image side by side.
    area, _ = _ranking(part.scores, part.labels, weights.T[images].T)
    return {
        "images": len(part),
        "patients": _count(part.patients),
        **area.mean(_abnormal_columns(part)).to_json("mean_auc"),
        "findings": _by_finding(part, {"auc": area}),
    }


def _comparison(table: LabelledScores, baseline: LabelledScores, samples: int, seed: int) -> dict:
    """Returns how much higher the areas of `table` are, on the images of both.

    Both are measured in the same bootstrap samples, so that what the two have in
    common does not widen the interval of their difference.
    """
    _, own, other = np.intersect1d(table.image_ids, baseline.image_ids, return_indices=True)
    if not len(own):
        raise InputError(
            "--compare must hold scores of the same images. Received: no image id in common."
            " Score the same manifest."
        )
    mine, theirs = table.select(own), baseline.select(other)
    weights = patient_weights(mine.patients, samples, seed)
    columns = _abnormal_columns(mine), _abnormal_columns(theirs)
    area, base = (
        _ranking(part.scores[:, chosen], part.labels[:, chosen], weights)[0]
        for part, chosen in zip((mine, theirs), columns, strict=True)
    )
    estimates = {"auc": area, "baseline_auc": base, "auc_difference": area.minus(base)}
    every = list(range(len(ABNORMAL_FINDINGS)))
    means = {f"mean_{name}": estimate.mean(every) for name, estimate in estimates.items()}
    return {
        "images": len(mine),
        "patients": _count(mine.patients),
        "only_in_scores": len(table) - len(mine),
        "only_in_baseline": len(baseline) - len(mine),
        **_merged(estimate.to_json(name) for name, estimate in means.items()),
        "findings": _by_finding(mine, estimates, ABNORMAL_FINDINGS),
    }


def _by_finding(
    table: LabelledScores, estimates: Mapping[str, _Estimate], names: Iterable[str] | None = None
) -> dict[str, dict]:
    """Returns estimates by finding, in the order of their columns, beside its positives."""
    return {
        name: {
            "positives": int(table.labels[:, table.findings.index(name)].sum()),
            **_merged(estimate.to_json(key, k) for key, estimate in estimates.items()),
        }
        for k, name in enumerate(names or table.findings)
    }


def _merged(parts: Iterable[dict]) -> dict:
    return {key: value for part in parts for key, value in part.items()}


def _count(patients: np.ndarray) -> int:
    return len(set(patients))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
