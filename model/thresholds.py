"""Thresholds: applying them, storing them, and what is known of each."""

import dataclasses
import json
import math
import typing
from collections.abc import Mapping

import numpy as np

from schemas.errors import InputError
from schemas.findings import ABNORMAL_FINDINGS, ABNORMAL_INDICES, FINDINGS

TTA_MODES = ("none", "borderline", "all")

Rule = typing.Literal["point", "conservative", "fallback_few_positives", "imported"]
"""How a threshold was chosen, as `model.tuning.tune_thresholds` explains; one that was
`imported` comes without a record of what stood behind it."""

IntervalKind = typing.Literal["wilson_images", "wilson_patients", "bootstrap_patients"]
"""How an interval of a recall was computed.

Wilson's counts each image, or each patient, as a draw of its own. By images it is too
narrow where patients have several. By patients it is used where all positives are
flagged, since no bootstrap sample of these can show a miss.
"""


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A finding's threshold and what stood behind it when it was chosen.

    Attributes:
      threshold: A score at or above it is flagged; float32, 0 to 1.
      recall: Share of positives flagged on the part it was chosen on.
      recall_low, recall_high: Two-sided 95% interval of that recall.
      precision: Share of the flagged that are positive, same part.
      positives: Number of positive images behind all this.
      rule: How it was chosen. With `imported` all other facts are None: unknown.
      interval: How `recall_low` and `recall_high` were computed.
    """

    threshold: float
    recall: float | None
    recall_low: float | None
    recall_high: float | None
    precision: float | None
    positives: int | None
    rule: Rule = "point"
    interval: IntervalKind | None = "wilson_images"


Thresholds = Mapping[str, Threshold]
"""One a finding, for the 14 findings."""


def bare_thresholds(values: Mapping[str, float]) -> Thresholds:
    """Returns thresholds of which nothing but their values is known, such as those of a run."""
    return {
        name: Threshold(value, math.nan, math.nan, math.nan, math.nan, 0)
        for name, value in values.items()
    }


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
    texts = {"rule": typing.get_args(Rule), "interval": typing.get_args(IntervalKind)}
    fields = [field.name for field in dataclasses.fields(Threshold) if field.name not in texts]
    if not isinstance(value, Mapping) or set(fields) - set(value):
        raise InputError(f"{source}: {name} must have the keys {', '.join(fields)}.")
    numbers = {field: value[field] for field in fields}
    imported = value.get("rule") == "imported"
    for field, number in numbers.items():
        if number is None and imported and field != "threshold":
            continue
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise InputError(f"{source}: {name}.{field} must be a number. Received: {number!r}.")
    if not 0 <= numbers["threshold"] <= 1:
        raise InputError(
            f"{source}: {name}.threshold must be from 0 to 1."
            f" Received: threshold={numbers['threshold']!r}."
        )
    # Bundles and files from before there was a choice lack these.
    known = {field: value[field] for field in texts if field in value}
    for field, text in known.items():
        if text not in texts[field] and not (imported and field == "interval" and text is None):
            raise InputError(
                f"{source}: {name}.{field} must be one of {', '.join(texts[field])}."
                f" Received: {text!r}."
            )
    return Threshold(**numbers, **known)


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
