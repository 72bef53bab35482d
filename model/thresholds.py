"""Thresholds: choosing one a finding for a wanted recall, and applying them."""

import dataclasses
import json
import math
from collections.abc import Mapping

import numpy as np

from schemas.errors import InputError
from schemas.findings import ABNORMAL_FINDINGS, ABNORMAL_INDICES, FINDINGS

TTA_MODES = ("none", "borderline", "all")

_Z_95 = 1.959963984540054
"""Two-sided 95% quantile of the normal distribution."""


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A finding's threshold and what stood behind it when it was chosen.

    Attributes:
      threshold: A score at or above it is flagged; float32, 0 to 1.
      recall: Share of positives flagged on the part it was chosen on.
      recall_low, recall_high: Wilson's 95% interval of that recall, by images.
      precision: Share of the flagged that are positive, same part.
      positives: Number of positive images behind all this.
    """

    threshold: float
    recall: float
    recall_low: float
    recall_high: float
    precision: float
    positives: int


Thresholds = Mapping[str, Threshold]
"""One a finding, for the 14 findings."""


def tune_thresholds(
    scores: np.ndarray, labels: np.ndarray, target_recall: float = 0.8
) -> dict[str, Threshold]:
    """Returns for each finding the highest threshold whose recall reaches the target.

    Args:
      scores: float32 `(images, 15)`, 0 to 1, in the order of `FINDINGS`.
      labels: bool `(images, 15)`.
      target_recall: Wanted share of positives flagged, over 0 and up to 1.

    Raises:
      InputError: A finding has no positive image, so no recall can be aimed at.
    """
    without = [FINDINGS[k] for k in ABNORMAL_INDICES if not labels[:, k].any()]
    if without:
        raise InputError(
            "Thresholds need at least one positive image a finding. Received none of:"
            f" {', '.join(without)}. Add labelled images of them."
        )
    return {
        FINDINGS[k]: _tune_one(scores[:, k], labels[:, k], target_recall) for k in ABNORMAL_INDICES
    }


def _tune_one(scores: np.ndarray, positive: np.ndarray, target_recall: float) -> Threshold:
    descending = np.sort(scores[positive])[::-1]
    positives = len(descending)
    # Rounding up 0.8 * 5 must give 4 though 0.8 * 5 may exceed it by a bit.
    needed = max(math.ceil(target_recall * positives - 1e-9), 1)
    threshold = np.float32(descending[needed - 1])
    flagged = scores >= threshold
    hits = int((flagged & positive).sum())
    low, high = wilson_interval(hits, positives)
    return Threshold(
        threshold=float(threshold),
        recall=hits / positives,
        recall_low=low,
        recall_high=high,
        precision=hits / int(flagged.sum()),
        positives=positives,
    )


def wilson_interval(hits: int, trials: int) -> tuple[float, float]:
    """Returns the 95% interval of a share.

    Reference: Wilson 1927, "Probable Inference, the Law of Succession, and
    Statistical Inference", https://doi.org/10.1080/01621459.1927.10502953.
    """
    share, z2 = hits / trials, _Z_95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z_95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    half /= 1 + z2 / trials
    # At 0 and 1 a bound is the share itself, which rounding may miss by a bit.
    return min(max(centre - half, 0.0), share), max(min(centre + half, 1.0), share)


def threshold_vector(thresholds: Thresholds) -> np.ndarray:
    """Returns float32 `(15,)` in the order of `FINDINGS`; infinite for No Finding."""
    vector = np.full(len(FINDINGS), np.inf, np.float32)
    for index in ABNORMAL_INDICES:
        vector[index] = thresholds[FINDINGS[index]].threshold
    return vector


def flagged_findings(scores: np.ndarray, vector: np.ndarray) -> list[int]:
    """Returns the indices of flagged findings, highest score first, ties by order.

    Args:
      scores: float32 `(15,)`.
      vector: As `threshold_vector` returns it.
    """
    flagged = np.flatnonzero(scores >= vector)
    return flagged[np.argsort(-scores[flagged], kind="stable")].tolist()


def abnormality(probabilities: np.ndarray) -> np.ndarray:
    """Returns 1 minus the product of (1 - p) over the 14 findings.

    The chance that at least one finding is present, if they were independent and
    the probabilities calibrated; without a calibration an ordering only.

    Args:
      probabilities: `(..., 15)` in the order of `FINDINGS`.

    Returns:
      float32 `(...)`, 0 to 1.
    """
    absent = 1 - probabilities[..., ABNORMAL_INDICES].astype(np.float64)
    return (1 - absent.prod(axis=-1)).astype(np.float32)


def thresholds_from_json(values: Mapping, source: str) -> dict[str, Threshold]:
    """Returns thresholds from parsed JSON, one object a finding.

    Args:
      values: By finding, the attributes of `Threshold`.
      source: Names the file in errors.

    Raises:
      InputError: A finding is missing or unknown, or a value is not a number of
        its range.
    """
    if not isinstance(values, Mapping) or set(values) != set(ABNORMAL_FINDINGS):
        names = set(values) if isinstance(values, Mapping) else set()
        odd = sorted(names.symmetric_difference(ABNORMAL_FINDINGS))
        raise InputError(
            f"{source} must give thresholds for exactly the 14 findings."
            f" Received: missing or unknown {', '.join(odd)}."
        )
    return {name: _threshold_from_json(name, values[name], source) for name in ABNORMAL_FINDINGS}


def _threshold_from_json(name: str, value: object, source: str) -> Threshold:
    fields = [field.name for field in dataclasses.fields(Threshold)]
    if not isinstance(value, Mapping) or set(fields) - set(value):
        raise InputError(f"{source}: {name} must have the keys {', '.join(fields)}.")
    numbers = {field: value[field] for field in fields}
    for field, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise InputError(f"{source}: {name}.{field} must be a number. Received: {number!r}.")
    if not 0 <= numbers["threshold"] <= 1:
        raise InputError(
            f"{source}: {name}.threshold must be from 0 to 1."
            f" Received: threshold={numbers['threshold']!r}."
        )
    return Threshold(**numbers)


def thresholds_to_json(thresholds: Thresholds) -> dict[str, dict]:
    """Returns thresholds as JSON values, the inverse of `thresholds_from_json`."""
    return {name: dataclasses.asdict(thresholds[name]) for name in ABNORMAL_FINDINGS}


def load_thresholds(path: str, tta: str) -> dict[str, Threshold]:
    """Reads a thresholds file: `{"tta": MODE, "findings": {NAME: {...}}}`.

    Args:
      path: A local JSON file.
      tta: The test-time augmentation the thresholds will be used with.

    Raises:
      InputError: The file cannot be read, is not of that form, or holds
        thresholds for another mode.
    """
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} must be a readable JSON file. Received: {error}.") from error
    if not isinstance(values, Mapping) or not {"tta", "findings"} <= set(values):
        raise InputError(f"{path} must have the keys 'tta' and 'findings'.")
    if values["tta"] != tta:
        raise InputError(
            f"{path} holds thresholds for --tta {values['tta']}, this run uses --tta {tta}."
            " Tune thresholds for that mode."
        )
    return thresholds_from_json(values["findings"], path)
