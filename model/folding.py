"""Batch normalisations folded into the convolutions before them.

Outside training a batch normalisation is a fixed scale and shift a channel. A
convolution with other weights and a bias does the same in one pass over the image
instead of three.
"""

import keras
import numpy as np


def fold_batch_norms(network: keras.Model) -> keras.Model:
    """Returns a copy of `network` for inference, equal to it within rounding.

    Args:
      network: As `model.network.build_network` makes it: in its backbone each
        batch normalisation follows a convolution without a bias.
    """
    folded = keras.models.clone_model(network, clone_function=_clone)
    source, target = (model.get_layer("backbone") for model in (network, folded))
    for layer in source.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            continue
        weights = layer.get_weights()
        if _lacks_bias(layer):
            weights = _folded(layer, weights, source.get_layer(_norm_after(layer.name)))
        target.get_layer(layer.name).set_weights(weights)
    for layer in network.layers:
        if not isinstance(layer, keras.Model):
            folded.get_layer(layer.name).set_weights(layer.get_weights())
    return folded


def _clone(layer: keras.Layer) -> keras.Layer:
    if isinstance(layer, keras.Model):
        return keras.models.clone_model(
            layer, clone_function=_clone, call_function=_skip_batch_norms
        )
    config = layer.get_config()
    if _lacks_bias(layer):
        config["use_bias"] = True
    return type(layer).from_config(config)


def _skip_batch_norms(layer: keras.Layer, *inputs, **arguments):
    if isinstance(layer, keras.layers.BatchNormalization):
        return inputs[0]
    return layer(*inputs, **arguments)


def _lacks_bias(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D) and (
        not layer.use_bias
    )


def _norm_after(convolution: str) -> str:
    """Returns the name that EfficientNet gives the normalisation of a convolution."""
    return convolution.replace("dwconv", "bn").replace("conv", "bn")


def _folded(layer: keras.Layer, weights: list, norm: keras.Layer) -> list[np.ndarray]:
    """Returns kernel and bias that convolve and normalise at once."""
    gamma, beta, mean, variance = (weight.astype(np.float64) for weight in norm.get_weights())
    scale = gamma / np.sqrt(variance + norm.epsilon)
    (kernel,) = weights
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        # Its kernel is (rows, columns, channels, 1): the channel is not last.
        kernel = kernel * scale[:, np.newaxis]
    else:
        kernel = kernel * scale
    return [kernel.astype(np.float32), (beta - mean * scale).astype(np.float32)]
