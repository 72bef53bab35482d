"""From a trained network to a bundle's facts: thresholds, metrics, provenance."""

import dataclasses
import datetime
import platform
from importlib import metadata

import numpy as np
from sklearn.metrics import roc_auc_score

from model.bundle import BundleInfo
from model.scorer import CPU_BATCH_SIZE, Borderline, Scorer
from model.thresholds import TTA_MODES, Threshold, threshold_vector, tune_thresholds
from model.training import TrainingConfig
from schemas.contract import STANDARD_CONTRACT
from schemas.findings import ABNORMAL_INDICES, FINDINGS

_SOFTWARE = ("prescreen", "tensorflow", "keras", "numpy", "pillow")


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """A part of the data.

    Attributes:
      pixels: uint8 `(images, 224, 224)`.
      labels: bool `(images, 15)` in the order of `FINDINGS`.
    """

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)


def measure(
    network, parts: dict[str, LabelledImages], config: TrainingConfig, split: str
) -> BundleInfo:
    """Tunes thresholds on the validation part, and measures on the test part.

    Args:
      network: Trained; as `model.network.build_network` makes it.
      parts: `train`, `validation` and `test`.
      config: Of the training.
      split: Says how the parts came about, for whoever reads the metrics.

    Returns:
      The bundle's facts, without the digest that saving adds.

    Raises:
      InputError: A finding has no positive in the validation part.
    """
    validation = _scores_by_mode(network, parts["validation"], config)
    test = _scores_by_mode(network, parts["test"], config, thresholds=validation["thresholds"])
    thresholds = validation["thresholds"]
    return BundleInfo(
        title=config.title,
        statement=config.statement,
        findings=FINDINGS,
        input_contract=STANDARD_CONTRACT,
        training_precision="float32",
        thresholds=thresholds,
        borderline_band=config.borderline_band,
        metrics={
            "split": split,
            "images": len(parts["test"]),
            **_aucs(test["scores"]["none"], parts["test"].labels),
            "flag_rate": {
                mode: float((scores >= threshold_vector(thresholds[mode])).any(axis=1).mean())
                for mode, scores in test["scores"].items()
            },
        },
        provenance={
            "images": {name: len(part) for name, part in parts.items()},
            "config": dataclasses.asdict(config),
            "software": {
                "python": platform.python_version(),
                **{name: metadata.version(name) for name in _SOFTWARE},
            },
            "trained_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
        model_sha256="",
    )


def _scores_by_mode(
    network,
    part: LabelledImages,
    config: TrainingConfig,
    thresholds: dict[str, dict[str, Threshold]] | None = None,
) -> dict:
    """Returns scores for each mode, and thresholds: those given, or tuned on `part`.

    What is borderline follows from the scores and thresholds of the mode `none`, so
    that nothing is computed twice.
    """
    single = _score(Scorer(network, precision="float32"), part)
    full = _score(Scorer(network, precision="float32", tta_mode="all"), part)
    tuned = dict(thresholds or {})
    tuned.setdefault("none", tune_thresholds(single, part.labels, config.target_recall))
    rule = Borderline(threshold_vector(tuned["none"]), config.borderline_band)
    mixed = np.where(rule.selects(single)[:, np.newaxis], full, single)
    scores = dict(zip(TTA_MODES, (single, mixed, full), strict=True))
    for mode, values in scores.items():
        if mode not in tuned:
            tuned[mode] = tune_thresholds(values, part.labels, config.target_recall)
    return {"scores": scores, "thresholds": tuned}


def _score(scorer: Scorer, part: LabelledImages) -> np.ndarray:
    batches = range(0, len(part), CPU_BATCH_SIZE)
    return np.concatenate(
        [scorer.score(part.pixels[start : start + CPU_BATCH_SIZE]).scores for start in batches]
    )


def _aucs(scores: np.ndarray, labels: np.ndarray) -> dict:
    """Returns AUC by finding, None where a part has one class only, and their mean."""
    findings = {}
    for index in ABNORMAL_INDICES:
        positives = int(labels[:, index].sum())
        measurable = 0 < positives < len(labels)
        auc = float(roc_auc_score(labels[:, index], scores[:, index])) if measurable else None
        findings[FINDINGS[index]] = {"auc": auc, "positives": positives}
    measured = [value["auc"] for value in findings.values() if value["auc"] is not None]
    mean = float(np.mean(measured)) if len(measured) == len(findings) else None
    return {"mean_auc": mean, "findings": findings}
