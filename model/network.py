"""The network: EfficientNetB0 with a three-layer head, grey levels in, scores out.

Reference: Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for
Convolutional Neural Networks", https://arxiv.org/abs/1905.11946.
"""

import dataclasses

import keras

from schemas.errors import InputError
from schemas.findings import FINDINGS

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of red, green and blue, for inputs of 0 to 1."""

_IMAGENET_MEAN = (0.485, 0.456, 0.406)

_FIRST_LOCAL_BLOCK = "block4"
"""From here on the feature map of 224x224 pixels has 14x14 places or fewer."""

_SPREAD = 0.1
"""How much of the usual random kernel is left where a convolution starts local."""

FLOAT32_LAYERS = ("scaling", "logits", "scores")
"""Layers that keep float32 whatever the precision of a run."""

POOLING_LAYER = "average_pool"
"""Its input is the last feature map, `(batch, rows, columns, 1280)`."""


@dataclasses.dataclass(frozen=True)
class Scaling:
    """What a grey level becomes before the first convolution: level * scale + offset.

    Attributes:
      scale: Of red, green and blue, for levels of 0 to 255.
      offset: Likewise.
    """

    scale: tuple[float, float, float]
    offset: tuple[float, float, float]


IMAGENET_SCALING = Scaling(
    scale=tuple(1 / (255 * std) for std in IMAGENET_STD),
    offset=tuple(-mean / std for mean, std in zip(_IMAGENET_MEAN, IMAGENET_STD, strict=True)),
)
"""To mean 0 and variance 1 over ImageNet: what the published weights were trained with."""


def build_network(
    size: int = 224, backbone_weights: str | None = None, scaling: Scaling = IMAGENET_SCALING
) -> keras.Model:
    """Returns the screening network, untrained except for its backbone.

    The graph is the same whatever `backbone_weights` is: the scaling is three
    built-in layers of ours, and Keras' own, which differ with the weights, are
    cut off. Built-in layers alone also mean that `model.keras` loads without
    this project's code.

    Args:
      size: Height and width of the input, in pixels.
      backbone_weights: `imagenet` (Keras downloads them), the path of a weights
        file in Keras' format for EfficientNetB0 without its top, or None.
      scaling: Another one only for weights that were trained with another one.

    Returns:
      A model from uint8 `(batch, size, size)`, 0 to 255, to float32
      `(batch, 15)` scores in the order of `FINDINGS`.

    Raises:
      InputError: The weights cannot be downloaded, or the file is not of them.
    """
    images = keras.Input((size, size), dtype="uint8", name="images")
    grey = keras.layers.Reshape((size, size, 1), name="channel")(images)
    rgb = keras.layers.Concatenate(name="rgb")([grey, grey, grey])
    scaled = keras.layers.Rescaling(
        scale=list(scaling.scale),
        offset=list(scaling.offset),
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
    whole = _load_whole(size, weights)
    first = whole.get_layer("stem_conv_pad")
    backbone = keras.Model(first.input, whole.output, name="backbone")
    if weights is None:
        _start_local(backbone)
    return backbone


def _load_whole(size: int, weights: str | None) -> keras.Model:
    """Returns Keras' own model, whose first layers differ with the weights."""
    try:
        return keras.applications.EfficientNetB0(
            include_top=False, weights=weights, input_shape=(size, size, 3)
        )
    except Exception as error:  # a failed download is a bare Exception
        if weights is None:
            raise
        cause = str(error).splitlines()[0]
        remedy = (
            "Download them where there is a network, and give the file's path"
            if weights == "imagenet"
            else "Give a file of Keras' EfficientNetB0 without its top"
        )
        raise InputError(
            "--backbone-weights must be imagenet, where Keras can download them, none, or a"
            f" weights file. Received: {weights}: {cause}. {remedy}."
        ) from error


def _start_local(backbone: keras.Model) -> None:
    """Makes the deep depthwise convolutions begin by passing on what is in each place.

    At the usual random start, the five-by-five kernels of the last blocks spread
    everything over the whole of a seven-by-seven map, and nothing in the loss gathers
    it again: the average over all places does not ask where something is. Activation
    maps of such a network point nowhere. ImageNet's weights have no need of this.

    Reference: Zagoruyko and Komodakis 2017, "DiracNets: Training Very Deep Neural
    Networks Without Skip-Connections", https://arxiv.org/abs/1706.00388, which starts
    convolutions so for another end.
    """
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.DepthwiseConv2D) and layer.name >= _FIRST_LOCAL_BLOCK:
            (kernel,) = layer.get_weights()
            centre = kernel.shape[0] // 2
            kernel *= _SPREAD
            kernel[centre, centre] += 1
            layer.set_weights([kernel])


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
