"""The seed's files as its notebook writes them, made without Keras 2."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import h5py
import keras
import numpy as np

from schemas.findings import FINDINGS

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
VARIANCE = np.array([0.229, 0.224, 0.225], np.float32)
"""As Keras stores them: ImageNet's standard deviation in the place of the variance."""

_HEAD = {"hidden_1": "dense", "hidden_2": "dense_1", "logits": "dense_2"}


def keras_2_weights(network: keras.Model) -> dict[str, np.ndarray]:
    """Returns the weights of `build_network`'s network under the names of Keras 2."""
    weights = {
        "normalization/mean:0": MEAN,
        "normalization/variance:0": VARIANCE,
        "normalization/count:0": np.int64(0),
    }
    for layer in [*network.get_layer("backbone").layers, *map(network.get_layer, _HEAD)]:
        for weight in layer.weights:
            depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            name = f"depthwise_{weight.name}" if depthwise else weight.name
            weights[f"{_HEAD.get(layer.name, layer.name)}/{name}:0"] = np.asarray(weight)
    return weights


def write_weights(
    path: Path,
    weights: Mapping[str, np.ndarray],
    *,
    whole: bool = False,
    nested: bool = False,
    rescalings: tuple[str, ...] = ("rescaling", "rescaling_1"),
) -> Path:
    """Writes weights as `save_weights`, or `save` where `whole`, of Keras 2 does.

    Args:
      path: A new file.
      weights: By `layer/weight:0`.
      whole: Write a model with its configuration and optimiser.
      nested: As of a model that has EfficientNetB0 as one layer.
      rescalings: Layers without weights that the file lists, where it lists them.
    """
    by_layer: dict[str, list[str]] = {} if nested else {name: [] for name in rescalings}
    for name in weights:
        layer = name.split("/")[0]
        group = "efficientnetb0" if nested and not layer.startswith("dense") else layer
        by_layer.setdefault(group, []).append(name)
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights") if whole else file
        if whole:
            file.attrs["model_config"] = "{}"
            file["optimizer_weights/Adam/iterations:0"] = np.int64(1)
        group.attrs["keras_version"] = "2.15.0"
        group.attrs["layer_names"] = list(by_layer)
        for layer, names in by_layer.items():
            layer_group = group.create_group(layer)
            layer_group.attrs["weight_names"] = names
            for name in names:
                layer_group[name] = weights[name]
    return path


def write_pickle(path: Path, value: object, protocol: int = 4) -> Path:
    """Writes `value` as any program does."""
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def write_seed_pickles(folder: Path) -> tuple[Path, Path]:
    """Writes thresholds of 0.18 to 0.45, and labels; returns their paths in this order."""
    values = np.linspace(0.18, 0.45, len(FINDINGS), dtype=np.float32)
    thresholds = dict(zip(FINDINGS, values, strict=True))
    labels = {name: index for index, name in enumerate(FINDINGS)}
    return (
        write_pickle(folder / "optimal_thresholds.pkl", thresholds),
        write_pickle(folder / "label_encoder.pkl", labels),
    )
