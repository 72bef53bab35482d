"""Losses on logits, where they are exact for any confidence."""

from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from model.training_config import Loss


def build_loss(loss: Loss, labels: np.ndarray) -> Callable:
    """Returns a Keras loss of labels and logits, both `(batch, 15)`.

    Args:
      loss: Which one.
      labels: bool `(images, 15)` of the training part as it is fed, from which
        `weighted_bce` counts positives and negatives.
    """
    if loss.kind == "focal":
        return keras.losses.BinaryFocalCrossentropy(
            apply_class_balancing=loss.class_balancing,
            alpha=loss.alpha,
            gamma=loss.gamma,
            from_logits=True,
        )
    if loss.kind == "bce":
        return keras.losses.BinaryCrossentropy(from_logits=True)
    positives = labels.sum(axis=0)
    # A class without a positive has nothing to weigh.
    weights = ((len(labels) - positives) / np.maximum(positives, 1)).astype(np.float32)

    def weighted_bce(y_true, y_pred):
        y_true = ops.cast(y_true, y_pred.dtype)
        each = ops.binary_crossentropy(y_true, y_pred, from_logits=True)
        return ops.mean(each * (1 + (weights - 1) * y_true), axis=-1)

    return weighted_bce
