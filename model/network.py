"""The network: EfficientNetB0 with a three-layer head, grey levels in, scores out.

Reference: Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for
Convolutional Neural Networks", https://arxiv.org/abs/1905.11946.
"""

import keras

from schemas.findings import FINDINGS

# ImageNet statistics of red, green and blue, for inputs of 0 to 1: what the
# published EfficientNet weights were trained with.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)

FLOAT32_LAYERS = ("scaling", "logits", "scores")
"""Layers that keep float32 whatever the precision of a run."""

POOLING_LAYER = "average_pool"
"""Its input is the last feature map, `(batch, rows, columns, 1280)`."""


def build_network(size: int = 224, backbone_weights: str | None = None) -> keras.Model:
    """Returns the screening network, untrained except for its backbone.

    The graph is the same whatever `backbone_weights` is: the scaling is three
    built-in layers of ours, and Keras' own, which differ with the weights, are
    cut off. Built-in layers alone also mean that `model.keras` loads without
    this project's code.

    Args:
      size: Height and width of the input, in pixels.
      backbone_weights: `imagenet` (Keras downloads them), the path of a weights
        file in Keras' format for EfficientNetB0 without its top, or None.

    Returns:
      A model from uint8 `(batch, size, size)`, 0 to 255, to float32
      `(batch, 15)` scores in the order of `FINDINGS`.
    """
    images = keras.Input((size, size), dtype="uint8", name="images")
    grey = keras.layers.Reshape((size, size, 1), name="channel")(images)
    rgb = keras.layers.Concatenate(name="rgb")([grey, grey, grey])
    scaled = keras.layers.Rescaling(
        scale=[1 / (255 * std) for std in _IMAGENET_STD],
        offset=[-mean / std for mean, std in zip(_IMAGENET_MEAN, _IMAGENET_STD, strict=True)],
        dtype="float32",
        name="scaling",
    )(rgb)
    features = _backbone(size, backbone_weights)(scaled)
    x = keras.layers.GlobalAveragePooling2D(name=POOLING_LAYER)(features)
    x = keras.layers.Dense(512, activation="relu", name="hidden_1")(x)
    x = keras.layers.Dropout(0.3, name="dropout_1")(x)
    x = keras.layers.Dense(256, activation="relu", name="hidden_2")(x)
    x = keras.layers.Dropout(0.2, name="dropout_2")(x)
    # float32 from here on: half precision would round the scores themselves.
    logits = keras.layers.Dense(len(FINDINGS), dtype="float32", name="logits")(x)
    scores = keras.layers.Activation("sigmoid", dtype="float32", name="scores")(logits)
    return keras.Model(images, scores, name="prescreen")


def _backbone(size: int, weights: str | None) -> keras.Model:
    """Returns EfficientNetB0 from its first convolution to its last activation."""
    whole = keras.applications.EfficientNetB0(
        include_top=False, weights=weights, input_shape=(size, size, 3)
    )
    first = whole.get_layer("stem_conv_pad")
    return keras.Model(first.input, whole.output, name="backbone")


def set_precision(network: keras.Model, precision: str) -> None:
    """Makes `network` compute in `precision` from the next trace on.

    Variables stay float32 under every policy, so that a change loses nothing.

    Args:
      network: As `build_network` returns it; changed in place.
      precision: A Keras dtype policy: `float32`, `mixed_float16` or
        `mixed_bfloat16`.
    """
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            set_precision(layer, precision)
        elif layer.name not in FLOAT32_LAYERS:
            layer.dtype_policy = precision
