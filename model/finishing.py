"""From a trained network to a bundle's facts: thresholds, calibration, metrics, provenance."""

import dataclasses
import datetime
import os
import platform
from collections.abc import Mapping
from importlib import metadata

import keras
import numpy as np

from model.bundle import BundleInfo
from model.calibration import fit_calibration
from model.devices import resolve_precision
from model.evaluation import evaluate
from model.image_cache import LabelledImages
from model.score_table import LabelledScores
from model.scorer import CPU_BATCH_SIZE, Borderline, Scorer
from model.thresholds import TTA_MODES, Thresholds, threshold_vector
from model.training_config import TrainingConfig
from model.tuning import tune_thresholds
from schemas.contract import STANDARD_CONTRACT
from schemas.findings import FINDINGS

_SOFTWARE = ("prescreen", "tensorflow", "keras", "numpy", "pillow")


def measure(
    network: keras.Model,
    parts: Mapping[str, LabelledImages],
    config: TrainingConfig,
    split: str,
    training: Mapping,
) -> BundleInfo:
    """Tunes and calibrates on the validation part, then measures on the test part.

    The test part decides nothing. Each mode of test-time augmentation has thresholds
    tuned on its own scores.

    Args:
      network: Trained; as `model.network.build_network` makes it.
      parts: `train`, `validation` and `test`.
      config: Of the training.
      split: Says how the parts came about, for whoever reads the metrics.
      training: Further provenance: what was balanced, the history.

    Returns:
      The bundle's facts, without the digest that saving adds.

    Raises:
      InputError: A finding has no positive in the validation part.
    """
    validation, test = parts["validation"], parts["test"]
    tuned_on = _scores_by_mode(network, validation, config)
    thresholds = {mode: _tune(scores, validation, config) for mode, scores in tuned_on.items()}
    calibration, calibration_errors = fit_calibration(
        tuned_on["none"], validation.labels, validation.patients, config.seed
    )
    measured = _scores_by_mode(network, test, config, single_thresholds=thresholds["none"])
    single = measured["none"]
    metrics = evaluate(
        _table(single, test),
        thresholds=thresholds["none"],
        seed=config.seed,
        probabilities=calibration.apply(single),
    )
    return BundleInfo(
        title=config.title,
        statement=config.statement,
        findings=FINDINGS,
        input_contract=STANDARD_CONTRACT,
        training_precision=resolve_precision(config.precision),
        thresholds=thresholds,
        borderline_band=config.borderline_band,
        metrics={
            "split": split,
            **metrics,
            "flag_rate": {
                mode: float((scores >= threshold_vector(thresholds[mode])).any(axis=1).mean())
                for mode, scores in measured.items()
            },
            "calibration": calibration_errors,
        },
        provenance={
            "data": config.data,
            "images": {name: len(part) for name, part in parts.items()},
            "patients": {name: len(np.unique(part.patients)) for name, part in parts.items()},
            "config": _without_paths(config),
            **training,
            "software": {
                "python": platform.python_version(),
                **{name: metadata.version(name) for name in _SOFTWARE},
            },
            "trained_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
        model_sha256="",
        calibration=calibration,
    )


def _without_paths(config: TrainingConfig) -> dict:
    """Returns the configuration; of files their names, not where they were."""
    values = dataclasses.asdict(config)
    for name in ("train_val_list", "test_list"):
        values["split"][name] = os.path.basename(values["split"][name])
    return values


def _tune(scores: np.ndarray, part: LabelledImages, config: TrainingConfig) -> Thresholds:
    return tune_thresholds(
        scores,
        part.labels,
        config.target_recall,
        policy=config.threshold_policy,
        patients=part.patients,
        seed=config.seed,
    )


def _scores_by_mode(
    network: keras.Model,
    part: LabelledImages,
    config: TrainingConfig,
    single_thresholds: Thresholds | None = None,
) -> dict[str, np.ndarray]:
    """Returns float32 `(images, 15)` scores for each of `TTA_MODES`.

    What is borderline follows from the scores and thresholds of the mode `none`:
    those given, or tuned on `part`.
    """
    single = _score(Scorer(network, precision="float32"), part)
    full = _score(Scorer(network, precision="float32", tta_mode="all"), part)
    thresholds = single_thresholds or _tune(single, part, config)
    rule = Borderline(threshold_vector(thresholds), config.borderline_band)
    mixed = np.where(rule.selects(single)[:, np.newaxis], full, single)
    return dict(zip(TTA_MODES, (single, mixed, full), strict=True))


def _score(scorer: Scorer, part: LabelledImages) -> np.ndarray:
    starts = range(0, len(part), CPU_BATCH_SIZE)
    return np.concatenate(
        [scorer.score(part.squares(slice(k, k + CPU_BATCH_SIZE))).scores for k in starts]
    )


def _table(scores: np.ndarray, part: LabelledImages) -> LabelledScores:
    views = part.view_positions
    return LabelledScores(
        image_ids=part.image_ids,
        findings=FINDINGS,
        scores=scores,
        labels=part.labels,
        patients=part.patients,
        attributes={"view_position": views} if (views != "").any() else {},
    )
