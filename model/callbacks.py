"""What happens between epochs: seeding, measuring, remembering."""

from collections.abc import Callable

import keras
import numpy as np
from sklearn.metrics import roc_auc_score

from model.image_cache import LabelledImages
from model.training_state import StateFolder, TrainingProgress
from schemas.findings import ABNORMAL_INDICES

VALIDATION_AUC = "val_mean_auc"

_KEPT_ATTRIBUTES = {
    keras.callbacks.ReduceLROnPlateau: ("best", "wait", "cooldown_counter"),
    keras.callbacks.EarlyStopping: ("best", "wait", "stopped_epoch"),
}
"""What Keras' callbacks know between epochs, and do not save."""


class SeedEpoch(keras.callbacks.Callback):
    """Seeds dropout from the number of the epoch: Keras saves no generator's state."""

    def __init__(self, *seed: int):
        """`seed` is all that decides the numbers beside the epoch."""
        super().__init__()
        self._seed = seed

    def on_epoch_begin(self, epoch, logs=None):
        """Sets the state of every generator in the model."""
        rng = np.random.default_rng([*self._seed, epoch])
        for variable in self.model.variables:
            if variable.name == "seed_generator_state":
                variable.assign(rng.integers(0, 2**31, variable.shape, np.uint32))


class MeasureValidation(keras.callbacks.Callback):
    """Adds the mean AUC over the whole validation part to the logs; keeps the best weights."""

    def __init__(
        self,
        predict: Callable[[np.ndarray], np.ndarray],
        validation: LabelledImages,
        batch_size: int,
        network: keras.Model,
        folder: StateFolder,
        progress: TrainingProgress,
    ):
        """Measures with `predict`, from squares to scores or logits; keeps `network`'s weights."""
        super().__init__()
        self._predict = predict
        self._validation = validation
        self._batch_size = batch_size
        self._network = network
        self._folder = folder
        self._progress = progress

    def on_epoch_end(self, epoch, logs=None):
        """Measures before the callbacks that want the number."""
        starts = range(0, len(self._validation), self._batch_size)
        squares = (self._validation.squares(slice(k, k + self._batch_size)) for k in starts)
        scores = np.concatenate([self._predict(batch) for batch in squares])
        auc = mean_auc(scores, self._validation.labels)
        logs[VALIDATION_AUC] = auc
        if self._progress.best_auc is None or auc > self._progress.best_auc:
            self._progress.best_auc = auc
            self._folder.save_best(self._network.get_weights())


class SaveState(keras.callbacks.Callback):
    """Writes the state at the end of each epoch; comes last, and sees all others' state."""

    def __init__(
        self,
        others: list[keras.callbacks.Callback],
        folder: StateFolder,
        progress: TrainingProgress,
        on_epoch: Callable[[list[dict]], None],
    ):
        """Restores `others` from `progress`; `on_epoch` gets the history."""
        super().__init__()
        self._kept = [(other, _KEPT_ATTRIBUTES.get(type(other), ())) for other in others]
        self._folder = folder
        self._progress = progress
        self._on_epoch = on_epoch

    def on_train_begin(self, logs=None):
        """Undoes the reset that Keras' callbacks begin with."""
        for callback, _ in self._kept:
            values = self._progress.callbacks.get(type(callback).__name__, {})
            for name, value in values.items():
                setattr(callback, name, value)

    def on_epoch_end(self, epoch, logs=None):
        """Saves all that the next epoch depends on."""
        progress = self._progress
        progress.epoch = epoch + 1
        progress.stopped = self.model.stop_training
        progress.callbacks = {
            type(callback).__name__: {name: getattr(callback, name) for name in names}
            for callback, names in self._kept
            if names
        }
        # ReduceLROnPlateau notes the rate that the epoch had before it lowers it.
        rate = logs.get("learning_rate", float(np.asarray(self.model.optimizer.learning_rate)))
        row = {"stage": progress.stage, "epoch": epoch, "loss": float(logs["loss"])}
        progress.history.append(
            {**row, VALIDATION_AUC: logs[VALIDATION_AUC], "learning_rate": rate}
        )
        self._folder.save(progress, state_variables(self.model))
        self._on_epoch(progress.history)


def state_variables(model: keras.Model) -> list:
    """Returns the variables that the next epoch depends on, in an order of their own."""
    return [*model.weights, *model.optimizer.variables]


def mean_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean over those of the 14 findings that have both kinds of images.

    Used to compare epochs only. What is reported is never a mean over fewer findings.

    Args:
      scores: `(images, 15)`, in any monotonous scale.
      labels: bool `(images, 15)`.
    """
    measurable = [k for k in ABNORMAL_INDICES if 0 < labels[:, k].sum() < len(labels)]
    return float(np.mean([roc_auc_score(labels[:, k], scores[:, k]) for k in measurable]))
