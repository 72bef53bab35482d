"""Grad-CAM in closed form: activation maps of all classes from one forward pass.

Reference: Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks
via Gradient-based Localization", https://arxiv.org/abs/1610.02391.

After the last convolution there is only an average over positions and a small
head. The gradient of a logit by the feature map is therefore the same at every
position: the head's gradient by the pooled features, divided by the number of
positions. Grad-CAM's weights are the head's Jacobian, and the maps are one
product of it with the feature map that the forward pass has computed anyway.
"""

import keras
import numpy as np
from keras import ops

from model.network import POOLING_LAYER

_TINY = np.finfo(np.float32).tiny
"""Divides a map of zeros."""


def explained_network(network: keras.Model) -> keras.Model:
    """Returns `network` with what the maps need as further outputs.

    Returns:
      A model from the images to `scores`, the feature map and the activations of
      both hidden layers, sharing the variables of `network`.
    """
    return keras.Model(
        network.input,
        {
            "scores": network.output,
            "features": network.get_layer(POOLING_LAYER).input,
            "hidden_1": network.get_layer("hidden_1").output,
            "hidden_2": network.get_layer("hidden_2").output,
        },
    )


def activation_maps(network: keras.Model, outputs: dict):
    """Returns the Grad-CAM maps of all classes, on logits, each divided by its maximum.

    Args:
      network: As `model.network.build_network` makes it.
      outputs: What `explained_network(network)` returned for a batch.

    Returns:
      float32 `(batch, classes, rows, columns)`, 0 to 1. A map without any positive
      evidence is all zeros.
    """
    features = ops.cast(outputs["features"], "float32")
    rows, columns, channels = features.shape[1:]
    positions = ops.reshape(features, (-1, rows * columns, channels))
    jacobian = _head_jacobian(network, outputs["hidden_1"], outputs["hidden_2"])
    # The number of positions would divide a map and its maximum alike.
    maps = ops.relu(ops.matmul(jacobian, ops.transpose(positions, (0, 2, 1))))
    highest = ops.max(maps, axis=2, keepdims=True)
    maps = maps / ops.maximum(highest, _TINY)
    return ops.reshape(maps, (-1, jacobian.shape[1], rows, columns))


def _head_jacobian(network: keras.Model, hidden_1, hidden_2):
    """Returns the gradient of each logit by the pooled features, `(batch, classes, 1280)`.

    A ReLU passes the gradient on where its output is positive and stops it
    elsewhere; dropout does nothing outside training.
    """
    kernel_1, kernel_2, kernel_3 = (
        ops.cast(network.get_layer(name).kernel, "float32")
        for name in ("hidden_1", "hidden_2", "logits")
    )
    passes_1 = ops.cast(hidden_1 > 0, "float32")[:, None, :]
    passes_2 = ops.cast(hidden_2 > 0, "float32")[:, None, :]
    by_hidden_2 = ops.transpose(kernel_3)[None] * passes_2
    by_hidden_1 = ops.matmul(by_hidden_2, ops.transpose(kernel_2)) * passes_1
    return ops.matmul(by_hidden_1, ops.transpose(kernel_1))
