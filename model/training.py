"""A network from labelled images: the training loop.

The same seed gives the same network on the same CPU, killed and resumed or not: what
an epoch draws depends on its number alone, and its end is written to disk.
"""

import csv
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np

from model.augmentation import ChangeImages, draw_changes
from model.balance import class_weights, oversample, positives_by_finding, sample_weights
from model.callbacks import (
    VALIDATION_AUC,
    MeasureValidation,
    SaveState,
    SeedEpoch,
    state_variables,
)
from model.devices import resolve_precision
from model.image_cache import LabelledImages
from model.losses import build_loss
from model.network import build_network, set_precision
from model.training_config import Augmentation, Stage, TrainingConfig
from model.training_state import StateFolder, TrainingProgress
from schemas.contract import STANDARD_CONTRACT
from schemas.errors import InputError
from schemas.findings import ABNORMAL_INDICES

_PLATEAU_PATIENCE = 5
_FINAL_RATE = 0.05
"""Share of the learning rate left at the end of a cosine, and of its steps to warm up in."""


@dataclasses.dataclass(frozen=True, eq=False)
class EpochPlan:
    """Which images an epoch shows, and how much each counts.

    Attributes:
      images: The training part.
      chosen: intp `(shown,)`: indices into `images`, some repeated.
      weights: float32 `(shown,)`.
    """

    images: LabelledImages
    chosen: np.ndarray
    weights: np.ndarray

    def report(self) -> dict:
        """Returns what was repeated, for the bundle's provenance."""
        return {
            "images": len(self.images),
            "shown": len(self.chosen),
            "positives": positives_by_finding(self.images.labels, np.arange(len(self.images))),
            "positives_shown": positives_by_finding(self.images.labels, self.chosen),
        }


def plan_epoch(train: LabelledImages, config: TrainingConfig) -> EpochPlan:
    """Returns the balanced training part."""
    rng = np.random.default_rng(config.seed)
    chosen = oversample(train.labels, config.balance.minimum_positives, rng)
    weights = class_weights(train.labels, config.balance.class_weight_strength)
    return EpochPlan(train, chosen, sample_weights(train.labels, weights)[chosen])


def train_network(
    plan: EpochPlan,
    validation: LabelledImages,
    config: TrainingConfig,
    folder: Path,
    *,
    backbone_weights: str | None = None,
    resume: bool = False,
) -> keras.Model:
    """Trains a network, and returns it as it was at the best epoch of its last stage.

    Args:
      plan: What an epoch shows.
      validation: What decides which epoch is best.
      config: What to do with them.
      folder: Keeps the state of the run, and `training.csv` with a row an epoch.
      backbone_weights: As for `model.network.build_network`.
      resume: Go on from the state in `folder`, where there is one.

    Returns:
      A network at the size of the last stage, in float32.

    Raises:
      InputError: `folder` holds a state and `resume` is not set, or the state of
        another run; or no finding can be measured on the validation part; or the
        weights of the backbone cannot be had.
    """
    _check_measurable(validation)
    keras.utils.set_random_seed(config.seed)
    state = StateFolder(folder)
    progress, variables = _begin(state, _digest(plan, validation, config), resume)
    network = None
    for number, stage in enumerate(config.stages[progress.stage :], start=progress.stage):
        if number > progress.stage:
            progress, variables = progress.next_stage(), None
        larger = build_network(stage.size, backbone_weights if network is None else None)
        if network is not None:
            larger.set_weights(network.get_weights())
        network = larger
        _run_stage(network, plan, validation, config, stage, state, progress, variables)
        network.set_weights(state.load_best())
    set_precision(network, "float32")
    return network


def _run_stage(
    network: keras.Model,
    plan: EpochPlan,
    validation: LabelledImages,
    config: TrainingConfig,
    stage: Stage,
    state: StateFolder,
    progress: TrainingProgress,
    variables: list[np.ndarray] | None,
) -> None:
    """Trains `network` in place from where `progress` and `variables` are."""
    steps = max(len(plan.chosen) // config.batch_size, 1)
    trainee = build_trainee(network, config, stage, steps, plan.images.labels[plan.chosen])
    if variables is not None:
        for variable, value in zip(state_variables(trainee), variables, strict=True):
            variable.assign(value)
    if progress.stopped or progress.epoch == stage.epochs:
        return
    others = [
        SeedEpoch(config.seed, progress.stage),
        MeasureValidation(
            lambda squares: _logits(trainee, squares),
            validation,
            config.batch_size,
            network,
            state,
            progress,
        ),
        *_schedule_callbacks(stage),
    ]
    save = SaveState(others, state, progress, lambda history: _write_log(state.path, history))
    trainee.fit(
        _batches(plan, config, progress.stage, progress.epoch, steps),
        initial_epoch=progress.epoch,
        epochs=stage.epochs,
        steps_per_epoch=steps,
        callbacks=[*others, save],
        # A bar with the time left on a terminal, a line an epoch elsewhere.
        verbose=1 if sys.stdout.isatty() else 2,
        shuffle=False,
    )


def build_trainee(
    network: keras.Model, config: TrainingConfig, stage: Stage, steps: int, labels: np.ndarray
) -> keras.Model:
    """Returns the compiled model that is fitted: changes, then `network` up to its logits.

    Args:
      network: At the size of `stage`; its variables are shared.
      config: Gives optimizer, loss and precision.
      stage: Gives the learning rate.
      steps: An epoch.
      labels: bool `(shown, 15)`, as for `model.losses.build_loss`.
    """
    precision = resolve_precision(config.precision)
    set_precision(network, precision)
    size = STANDARD_CONTRACT.size
    inputs = (
        keras.Input((size, size), dtype="uint8", name="squares"),
        keras.Input((8,), name="places"),
        keras.Input((2,), name="levels"),
    )
    changed = ChangeImages(network.input_shape[1], name="changes")(*inputs)
    logits = keras.Model(network.input, network.get_layer("logits").output)
    trainee = keras.Model(inputs, logits(changed))
    optimizer = _build_optimizer(config, stage, steps, precision)
    trainee.compile(optimizer, loss=build_loss(config.loss, labels), **_compilation())
    optimizer.build(trainee.trainable_variables)
    return trainee


def _logits(trainee: keras.Model, squares: np.ndarray) -> np.ndarray:
    """Returns float32 `(batch, 15)` of unchanged images."""
    none = Augmentation(flip=False, brightness=0.0, contrast=0.0, zoom=1.0)
    changes = draw_changes(none, len(squares), squares.shape[1], np.random.default_rng(0))
    return trainee.predict_on_batch((squares, *changes))


def _batches(
    plan: EpochPlan, config: TrainingConfig, stage: int, first_epoch: int, steps: int
) -> Iterator[tuple]:
    """Gives the batches of `first_epoch` and all after it, without end.

    The order and the changes of an epoch follow from its number. A last, shorter
    batch is left out: it would only upset the batch statistics.
    """
    epoch = first_epoch
    size = STANDARD_CONTRACT.size
    while True:
        rng = np.random.default_rng([config.seed, stage, epoch])
        order = rng.permutation(len(plan.chosen))
        for step in range(steps):
            shown = order[step * config.batch_size : (step + 1) * config.batch_size]
            images = plan.chosen[shown]
            changes = draw_changes(config.augmentation, len(shown), size, rng)
            labels = plan.images.labels[images].astype(np.float32)
            yield (plan.images.squares(images), *changes), labels, plan.weights[shown]
        epoch += 1


def _build_optimizer(
    config: TrainingConfig, stage: Stage, steps: int, precision: str
) -> keras.Optimizer:
    rate = stage.learning_rate
    if stage.schedule == "cosine":
        total = steps * stage.epochs
        warm_up = max(int(total * _FINAL_RATE), 1)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0,
            decay_steps=max(total - warm_up, 1),
            alpha=_FINAL_RATE,
            warmup_target=stage.learning_rate,
            warmup_steps=warm_up,
        )
    options = {"clipnorm": config.optimizer.clip_norm}
    if config.optimizer.kind == "adamw":
        options["weight_decay"] = config.optimizer.weight_decay
    kinds = {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}
    optimizer = kinds[config.optimizer.kind](rate, **options)
    if precision == "mixed_float16":
        # Gradients below half precision's range would be lost.
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def _schedule_callbacks(stage: Stage) -> list[keras.callbacks.Callback]:
    stop = keras.callbacks.EarlyStopping(VALIDATION_AUC, mode="max", patience=stage.stop_after)
    if stage.schedule == "cosine":
        return [stop]
    reduce = keras.callbacks.ReduceLROnPlateau(
        VALIDATION_AUC, mode="max", factor=0.5, patience=_PLATEAU_PATIENCE
    )
    return [reduce, stop]


def _compilation() -> dict:
    # TensorFlow's XLA is slow on CPUs and lacks the operation that crops; JAX has no
    # other compiler.
    return {"jit_compile": False} if keras.backend.backend() == "tensorflow" else {}


def _begin(
    state: StateFolder, digest: str, resume: bool
) -> tuple[TrainingProgress, list[np.ndarray] | None]:
    """Returns where to start from: a saved state, or the beginning."""
    saved = state.load()
    if saved is None:
        return TrainingProgress(digest), None
    if not resume:
        raise InputError(
            f"{state.path} must not hold the state of another training. Received: one that was"
            " begun and not finished. Go on with it by --resume, or remove the folder."
        )
    if saved[0].digest != digest:
        raise InputError(
            f"--resume must go on with the same images and configuration as {state.path} was"
            " begun with. Received: others. Restore them, or remove the folder."
        )
    return saved


def _digest(plan: EpochPlan, validation: LabelledImages, config: TrainingConfig) -> str:
    """Returns a digest over everything that decides the network, but the pixels."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    for part in (plan.images, validation):
        digest.update("\0".join(part.image_ids.tolist()).encode())
        digest.update(np.packbits(part.labels).tobytes())
    digest.update(plan.chosen.tobytes())
    return digest.hexdigest()


def _check_measurable(validation: LabelledImages) -> None:
    labels = validation.labels[:, ABNORMAL_INDICES]
    if not (labels.any(axis=0) & ~labels.all(axis=0)).any():
        raise InputError(
            "The validation part must have images with and without one finding at least, or no"
            f" epoch can be told best. Received: {len(validation)} images without such a finding."
        )


def read_history(folder: Path) -> list[dict]:
    """Returns what a training that ended wrote of each epoch."""
    progress, _ = StateFolder(folder).load()
    return progress.history


def _write_log(folder: Path, history: list[dict]) -> None:
    """Writes `training.csv` anew, so that a kill leaves no row twice."""
    temporary = folder / ".training.csv.tmp"
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, history[0])
        writer.writeheader()
        writer.writerows(history)
    os.replace(temporary, folder / "training.csv")
