"""Tuning: choosing a threshold a finding for a wanted recall, on the validation part."""

import bisect
import dataclasses
import math
import typing
from collections.abc import Mapping

import numpy as np

from model.bootstrap import interval, patient_weights
from model.bundle import BundleInfo
from model.thresholds import TTA_MODES, IntervalKind, Rule, Threshold, Thresholds
from schemas.errors import InputError
from schemas.findings import ABNORMAL_INDICES, FINDINGS

Policy = typing.Literal["point", "conservative"]
"""What of a recall must reach the target: itself, or the lower end of its interval."""

MIN_POSITIVES = 10
"""Patients with a finding below which one alone is worth over a tenth of the recall."""

_TAIL = 0.025
"""Chance left below a two-sided 95% interval."""

_Z_95 = 1.959963984540054
"""Two-sided 95% quantile of the normal distribution."""

_MEASURED_AT_THRESHOLDS = frozenset(
    (
        "threshold",
        *("recall", "recall_low", "recall_high"),
        *("precision", "precision_low", "precision_high"),
        "confusion",
    )
)
"""What a bundle's metrics say of a finding at its threshold for the mode `none`."""

_ROUNDING = 1e-9
"""A recall this little short reaches the target: 4 of 5 reach 0.8."""


def tune_thresholds(
    scores: np.ndarray,
    labels: np.ndarray,
    target_recall: float = 0.8,
    *,
    policy: Policy = "point",
    patients: np.ndarray | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Threshold]:
    """Returns for each finding the highest threshold whose recall reaches the target.

    With the policy `point` that is the recall of these images. With `conservative` it
    is the lower end of its two-sided 95% interval, bootstrapped over patients: other
    patients will then seldom have a lower one.

    A finding with fewer positive patients than `fewest_positives` says falls back to
    the lowest score of any positive image, which flags all known positives, with the
    rule `fallback_few_positives`.

    Args:
      scores: float32 `(images, 15)`, 0 to 1, in the order of `FINDINGS`.
      labels: bool `(images, 15)`.
      target_recall: Wanted share of positives flagged, over 0 and up to 1.
      policy: What must reach the target.
      patients: `(images,)`, the patient of each image. None where unknown: intervals
        are Wilson's by image then, too narrow where patients have several images.
      samples: Bootstrap samples.
      seed: Of the bootstrap.

    Raises:
      InputError: A finding has no positive image, so no recall can be aimed at; or
        `conservative` is asked for without patients, or with a target of 1.
    """
    without = [FINDINGS[k] for k in ABNORMAL_INDICES if not labels[:, k].any()]
    if without:
        raise InputError(
            "Thresholds need at least one positive image a finding. Received none of:"
            f" {', '.join(without)}. Add labelled images of them."
        )
    owner = weights = None
    if policy == "conservative":
        _check_conservative(target_recall, patients)
    if patients is not None:
        _, owner = np.unique(np.asarray(patients), return_inverse=True)
        weights = patient_weights(owner, samples, seed)
    tuned = {}
    for k in ABNORMAL_INDICES:
        positives = _Positives.of(scores[:, k], labels[:, k], owner, weights)
        threshold, rule = _choose(positives, target_recall, policy)
        tuned[FINDINGS[k]] = _describe(threshold, rule, positives, scores[:, k])
    return tuned


def _check_conservative(target_recall: float, patients: np.ndarray | None) -> None:
    if patients is None:
        raise InputError(
            "policy must be point where patients are unknown. Received: policy=conservative."
            " Add patient_id to the labels; where each patient has one image, its image_id."
        )
    if target_recall >= 1:
        raise InputError(
            "target_recall must be under 1 for policy conservative, since no number of images"
            f" shows a recall of 1. Received: target_recall={target_recall}. Lower it."
        )


def fewest_positives(target_recall: float, policy: Policy) -> int:
    """Returns how many patients must have a finding for its threshold to be tuned.

    `MIN_POSITIVES`; and for `conservative` as many as it takes to show the target at
    all. Where n patients are flagged, all of them, a recall below the target has a
    chance of less than target ** n to look so good; the lower end of a 95% interval
    reaches the target only where that is at most 2.5%. For 0.8 these are 17.
    """
    if policy == "point":
        return MIN_POSITIVES
    return max(MIN_POSITIVES, math.ceil(math.log(_TAIL) / math.log(target_recall)))


@dataclasses.dataclass(frozen=True)
class _Positives:
    """The positive images of one finding.

    Attributes:
      scores: float32 `(positives,)`, descending.
      patients: How many patients they are of; None where unknown.
      flagged: Integers `(positives, samples)`: how many positive draws of each
        bootstrap sample have this score or a higher one; None where patients are
        unknown.
    """

    scores: np.ndarray
    patients: int | None
    flagged: np.ndarray | None

    @classmethod
    def of(
        cls,
        scores: np.ndarray,
        positive: np.ndarray,
        owner: np.ndarray | None,
        weights: np.ndarray | None,
    ) -> "_Positives":
        indices = np.flatnonzero(positive)
        indices = indices[np.argsort(-scores[indices], kind="stable")]
        if weights is None:
            return cls(scores[indices], None, None)
        flagged = weights.T[indices].cumsum(axis=0, dtype=np.int32)
        return cls(scores[indices], len(np.unique(owner[indices])), flagged)

    @property
    def units(self) -> int:
        """Patients where they are known, images where not."""
        return len(self.scores) if self.patients is None else self.patients

    def count_flagged(self, threshold: np.float32) -> int:
        return int((self.scores >= threshold).sum())

    def recall_interval(self, flagged: int) -> tuple[float, float]:
        """Returns the bootstrap interval of the recall where so many are flagged."""
        total = self.flagged[-1]
        # A sample that drew no positive has no recall.
        with np.errstate(invalid="ignore"):
            return interval(self.flagged[flagged - 1] / total)


def _choose(positives: _Positives, target_recall: float, policy: Policy) -> tuple[np.float32, Rule]:
    count = len(positives.scores)
    if positives.units < fewest_positives(target_recall, policy):
        return positives.scores[-1], "fallback_few_positives"
    if policy == "point":
        needed = max(math.ceil(target_recall * count - _ROUNDING), 1)
    else:
        # Each sample's recall grows with the images flagged, and so does the low end.
        needed = 1 + bisect.bisect_left(
            range(1, count + 1),
            target_recall - _ROUNDING,
            key=lambda flagged: positives.recall_interval(flagged)[0],
        )
    return positives.scores[needed - 1], policy


def _describe(
    threshold: np.float32, rule: Rule, positives: _Positives, scores: np.ndarray
) -> Threshold:
    hits, count = positives.count_flagged(threshold), len(positives.scores)
    low, high, kind = _recall_interval(hits, positives)
    return Threshold(
        threshold=float(threshold),
        recall=hits / count,
        recall_low=low,
        recall_high=high,
        precision=hits / int((scores >= threshold).sum()),
        positives=count,
        rule=rule,
        interval=kind,
    )


def _recall_interval(hits: int, positives: _Positives) -> tuple[float, float, IntervalKind]:
    if positives.patients is None:
        return *wilson_interval(hits, len(positives.scores)), "wilson_images"
    if hits == len(positives.scores):
        # No sample of them can show a miss: the bootstrap would say 1 to 1.
        return *wilson_interval(positives.patients, positives.patients), "wilson_patients"
    return *positives.recall_interval(hits), "bootstrap_patients"


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


def with_thresholds(
    info: BundleInfo, tta: str, thresholds: Thresholds, flag_rate: float, tuned_on: Mapping
) -> BundleInfo:
    """Returns the facts of a bundle with other thresholds for one mode.

    Where those of `none` change, thresholds of the mode `borderline` are dropped, as
    other images are borderline then; and so is what was measured at the old ones.

    Args:
      info: Of the bundle as it is.
      tta: The test-time augmentation mode that `thresholds` belong to.
      thresholds: One for each of the 14 findings.
      flag_rate: Share of images that `thresholds` flagged where they were tuned; it
        is the rate that a run with them expects.
      tuned_on: JSON values for the provenance: what they were tuned on, and how.
    """
    dropped = {tta, "borderline"} if tta == "none" else {tta}

    def replaced(by_mode: Mapping, value: object) -> dict:
        values = {mode: old for mode, old in by_mode.items() if mode not in dropped} | {tta: value}
        return {mode: values[mode] for mode in TTA_MODES if mode in values}

    rates = replaced(info.metrics.get("flag_rate", {}), flag_rate)
    origins = replaced(info.provenance.get("thresholds", {}), dict(tuned_on))
    metrics = _without_thresholds(info.metrics) if tta == "none" else info.metrics
    return dataclasses.replace(
        info,
        thresholds=replaced(info.thresholds, thresholds),
        metrics={**metrics, "flag_rate": rates},
        provenance={**info.provenance, "thresholds": origins},
    )


def _without_thresholds(metrics: Mapping) -> dict:
    """Returns what `model.evaluation.evaluate` measured without thresholds."""
    kept = {name: value for name, value in metrics.items() if name != "flags_per_image"}
    if "findings" in kept:
        kept["findings"] = {
            finding: {
                name: value for name, value in values.items() if name not in _MEASURED_AT_THRESHOLDS
            }
            for finding, values in kept["findings"].items()
        }
    return kept
