"""Calibration: from the network's scores to probabilities that keep their order.

A finding's probability is sigmoid(slope * logit(score) + intercept) with a positive
slope, so that nothing that depends on ranks alone changes. Fitted on the validation
part, and kept for a finding only where it lowers the error on patients it was not
fitted on.

Reference: Platt 1999, "Probabilistic Outputs for Support Vector Machines and
Comparisons to Regularized Likelihood Methods".
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from scipy.special import expit, logit

from schemas.errors import InputError
from schemas.findings import ABNORMAL_FINDINGS, ABNORMAL_INDICES, FINDINGS

FOLDS = 5
"""Parts of the patients, each of which tests a scaling fitted on the others."""

MIN_PATIENTS = 10
"""Patients with a finding, and without it, below which its scores stay as they are:
two a fold."""

_LOWEST, _HIGHEST = 2.0**-150, 1 - 2.0**-25
"""Stand for 0 and 1, whose logits are infinite: beyond every other float32 score."""

_MIN_SLOPE = 1e-3
"""Where a fit ends at it, the scores do not rise with the finding."""


@dataclasses.dataclass(frozen=True)
class Scaling:
    """How one finding's scores become probabilities.

    Attributes:
      slope: Factor of a score's logit, positive.
      intercept: What is added to it.
    """

    slope: float
    intercept: float


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How the scores of a bundle become probabilities.

    Attributes:
      scalings: One for each of the 14 findings; None where its scores stay as they
        are. No Finding has none.
    """

    scalings: Mapping[str, Scaling | None]

    def apply(self, scores: np.ndarray) -> np.ndarray:
        """Returns probabilities, in the order of the scores for each finding.

        Args:
          scores: float32 `(..., 15)`, 0 to 1, in the order of `FINDINGS`.

        Returns:
          float32 `(..., 15)`, 0 to 1.
        """
        probabilities = np.array(scores, np.float32)
        scaled = {FINDINGS.index(name): value for name, value in self.scalings.items() if value}
        indices = list(scaled)
        slopes = np.array([scaling.slope for scaling in scaled.values()])
        intercepts = np.array([scaling.intercept for scaling in scaled.values()])
        logits = _finite_logits(probabilities[..., indices])
        probabilities[..., indices] = expit(slopes * logits + intercepts)
        return probabilities

    def to_json(self) -> dict:
        """Returns JSON values, the inverse of `calibration_from_json`."""
        return {
            name: dataclasses.asdict(scaling) if scaling else None
            for name, scaling in self.scalings.items()
        }


def calibration_from_json(values: object, source: str) -> Calibration:
    """Returns the calibration from parsed JSON.

    Args:
      values: For each of the 14 findings null, or its slope and intercept.
      source: Names the file in errors.

    Raises:
      InputError: A finding is missing or unknown, a number is not finite, or a slope
        is not positive.
    """
    if not isinstance(values, Mapping) or set(values) != set(ABNORMAL_FINDINGS):
        names = set(values) if isinstance(values, Mapping) else set()
        odd = sorted(names.symmetric_difference(ABNORMAL_FINDINGS))
        raise InputError(
            f"{source}: calibration must be null or for exactly the 14 findings."
            f" Received: missing or unknown {', '.join(odd)}."
        )
    return Calibration(
        {name: _scaling_from_json(name, values[name], source) for name in ABNORMAL_FINDINGS}
    )


def _scaling_from_json(name: str, value: object, source: str) -> Scaling | None:
    if value is None:
        return None
    fields = [field.name for field in dataclasses.fields(Scaling)]
    if not isinstance(value, Mapping) or set(value) != set(fields):
        raise InputError(
            f"{source}: calibration.{name} must be null or have the keys {', '.join(fields)}."
        )
    for field, number in value.items():
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not is_number or not math.isfinite(number) or (field == "slope" and number <= 0):
            rule = "a finite number over 0" if field == "slope" else "a finite number"
            raise InputError(
                f"{source}: calibration.{name}.{field} must be {rule}. Received: {number!r}."
            )
    return Scaling(float(value["slope"]), float(value["intercept"]))


def fit_calibration(
    scores: np.ndarray, labels: np.ndarray, patients: np.ndarray, seed: int = 0
) -> tuple[Calibration, dict[str, dict]]:
    """Returns a calibration fitted on the validation part, and why it is as it is.

    Patients are divided into `FOLDS` parts; each part's error is measured with the
    scaling fitted on the others. A finding gets a scaling, fitted on all, only where
    the log loss over all parts is lower than that of its scores as they are.

    Args:
      scores: float32 `(images, 15)`, 0 to 1, of one view an image.
      labels: bool `(images, 15)`.
      patients: `(images,)`; all images of a patient fall in one part.
      seed: Divides the patients.

    Returns:
      The calibration, and by finding JSON values for a bundle's metrics:
      `log_loss_scores`, `log_loss_calibrated` (held out), and `calibrated`, whether
      it was kept. The losses are None for a finding with, or without, fewer than
      `MIN_PATIENTS` patients: nothing was tried there.
    """
    _, owner = np.unique(np.asarray(patients), return_inverse=True)
    fold = (np.random.default_rng(seed).permutation(owner.max() + 1) % FOLDS)[owner]
    scalings, errors = {}, {}
    for index, name in zip(ABNORMAL_INDICES, ABNORMAL_FINDINGS, strict=True):
        logits, positive = _finite_logits(scores[:, index]), labels[:, index]
        before = after = scaling = None
        if min(len(np.unique(owner[positive])), len(np.unique(owner[~positive]))) >= MIN_PATIENTS:
            before = _log_loss(logits, positive)
            after = _held_out_log_loss(logits, positive, fold)
            fitted = _fit(logits, positive)
            if after < before and fitted.slope > _MIN_SLOPE:
                scaling = fitted
        scalings[name] = scaling
        errors[name] = {
            "log_loss_scores": before,
            "log_loss_calibrated": after,
            "calibrated": scaling is not None,
        }
    return Calibration(scalings), errors


def _finite_logits(scores: np.ndarray) -> np.ndarray:
    """Returns float64 logits, in the order of the scores, of 0 and 1 too."""
    return logit(np.clip(scores.astype(np.float64), _LOWEST, _HIGHEST))


def _held_out_log_loss(logits: np.ndarray, positive: np.ndarray, fold: np.ndarray) -> float:
    scaled = np.empty_like(logits)
    for number in range(FOLDS):
        held_out = fold == number
        scaling = _fit(logits[~held_out], positive[~held_out])
        scaled[held_out] = scaling.slope * logits[held_out] + scaling.intercept
    return _log_loss(scaled, positive)


def _log_loss(logits: np.ndarray, targets: np.ndarray) -> float:
    """Returns the mean cross-entropy, in nats, of logits against targets from 0 to 1."""
    return float(np.mean(np.logaddexp(0, logits) - targets * logits))


def _fit(logits: np.ndarray, positive: np.ndarray) -> Scaling:
    """Returns the scaling of least cross-entropy against Platt's targets.

    Those lie a little off 0 and 1, so that there is a finite optimum where the scores
    divide the positive from the negative without an error.
    """
    # Here, so that the facts of a bundle can be read without it.
    from scipy.optimize import minimize

    positives = int(positive.sum())
    high = (positives + 1) / (positives + 2)
    low = 1 / (len(positive) - positives + 2)
    targets = np.where(positive, high, low)

    def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = parameters[0] * logits + parameters[1]
        excess = expit(scaled) - targets
        return _log_loss(scaled, targets), np.array([np.mean(excess * logits), np.mean(excess)])

    result = minimize(
        loss_and_gradient,
        x0=[1.0, 0.0],
        jac=True,
        method="L-BFGS-B",
        bounds=[(_MIN_SLOPE, None), (None, None)],
        options={"ftol": 1e-12, "gtol": 1e-8},
    )
    return Scaling(*result.x.tolist())
