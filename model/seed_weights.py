"""Weights out of the HDF5 files that Keras 2 wrote, without Keras running anything of them.

Such a file lists the layers of a model in `layer_names`, and the weights of each in
`weight_names`, for instance `stem_conv/kernel:0`. A whole model has the same below
`model_weights`, beside a configuration that could hold code and is not looked at.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping

import h5py
import keras
import numpy as np

from schemas.errors import InputError

_MAX_BYTES = 64 << 20
"""Of all weights; the seed's are 20 MB. What is compressed could be of any size."""

_HEAD = ("hidden_1", "hidden_2", "logits")
_NUMBERED = re.compile(r"(normalization|rescaling)(_\d+)?")
_SHOWN = 3
"""Weights that an error names."""


@dataclasses.dataclass(frozen=True)
class SeedWeights:
    """What a weights file holds.

    Attributes:
      arrays: float32, by `layer/weight` as Keras 3 calls the weight; the three dense
        layers by any name.
      mean, variance: float32 `(3,)`: of EfficientNetB0's own normalization.
      whole_model: Whether the file holds a model, and not weights alone.
      second_rescaling: Whether its graph had `rescaling_1`; None where the file does
        not list the layers of EfficientNetB0.
    """

    arrays: Mapping[str, np.ndarray]
    mean: np.ndarray
    variance: np.ndarray
    whole_model: bool
    second_rescaling: bool | None


def read_seed_weights(path: str) -> SeedWeights:
    """Reads a legacy HDF5 file of Keras 2, of weights alone or of a whole model.

    Args:
      path: A local file. Links out of it are not followed.

    Raises:
      InputError: The file cannot be read, is of another format, or holds a weight
        twice, one that is no finite number, or no normalization of three channels.
    """
    try:
        with h5py.File(path, "r") as file:
            whole_model = "model_weights" in file
            group = _group(file, "model_weights", path) if whole_model else file
            layers = _names(group, "layer_names", path)
            datasets = _datasets(group, layers, path)
            arrays = {name: _read(dataset, name, path) for name, dataset in datasets.items()}
    except InputError:
        raise
    # h5py tells of damage in all of these ways.
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} must be a readable HDF5 file as Keras 2 writes it."
            f" Received: {str(error).splitlines()[0][:200]}."
        ) from error
    mean, variance = (_statistics(arrays, name, path) for name in ("mean", "variance"))
    arrays.pop("normalization/count", None)
    rescalings = sum(_plain_name(layer) == "rescaling" for layer in layers)
    return SeedWeights(arrays, mean, variance, whole_model, rescalings == 2 if rescalings else None)


def assign_seed_weights(network: keras.Model, weights: SeedWeights, path: str) -> None:
    """Sets every weight of `network`, each from the one of its name and shape.

    Args:
      network: As `model.network.build_network` makes it; changed in place.
      weights: Of a file.
      path: Names the file in errors.

    Raises:
      InputError: The file lacks a weight, or holds another one or another shape.
    """
    wanted = {f"{layer.name}/{weight.name}": weight for layer, weight in _leaves(network)}
    given = _with_our_head(weights.arrays, network)
    missing = [
        f"{name} {tuple(weight.shape)}"
        for name, weight in wanted.items()
        if name not in given or given[name].shape != tuple(weight.shape)
    ]
    odd = [
        f"{name} {array.shape}"
        for name, array in given.items()
        if name not in wanted or array.shape != tuple(wanted[name].shape)
    ]
    if missing or odd:
        raise InputError(
            f"{path} must hold the weights of EfficientNetB0 without its top and of three dense"
            f" layers for {network.output_shape[-1]} classes, and no others."
            f" Received: missing {_some(missing)}; not wanted {_some(odd)}."
        )
    for name, weight in wanted.items():
        weight.assign(given[name])


def _leaves(network: keras.Model) -> Iterator[tuple[keras.Layer, keras.Variable]]:
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            yield from _leaves(layer)
        else:
            yield from ((layer, weight) for weight in layer.weights)


def _with_our_head(arrays: Mapping[str, np.ndarray], network: keras.Model) -> dict[str, np.ndarray]:
    """Returns the weights with the dense layers, numbered by Keras, named by their shape."""
    ours = {tuple(network.get_layer(name).kernel.shape): name for name in _HEAD}
    # Only dense kernels have two axes.
    layers = {
        name.removesuffix("/kernel"): ours[array.shape]
        for name, array in arrays.items()
        if name.endswith("/kernel") and array.shape in ours
    }
    renamed = {}
    for name, array in arrays.items():
        layer, _, weight = name.partition("/")
        renamed[f"{layers.get(layer, layer)}/{weight}"] = array
    # Two layers of one shape: their own names are left, and refused.
    return renamed if len(renamed) == len(arrays) else dict(arrays)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + more


def _group(parent: h5py.Group, name: str, path: str) -> h5py.Group:
    item = _own(parent, name, path)
    if not isinstance(item, h5py.Group):
        raise InputError(f"{path}: {name!r:.80} must be a group. Received: a data set.")
    return item


def _own(parent: h5py.Group, name: str, path: str) -> h5py.Group | h5py.Dataset:
    """Returns what `parent` itself holds; a link could lead into any file of this machine."""
    item = parent
    for part in name.split("/"):
        within = isinstance(item, h5py.Group)
        if not within or not isinstance(item.get(part, getlink=True), h5py.HardLink):
            raise InputError(
                f"{path}: {name!r:.80} must be in the file. Received: a link, or nothing."
            )
        item = item[part]
    return item


def _names(group: h5py.Group, attribute: str, path: str) -> list[str]:
    if attribute not in group.attrs:
        raise InputError(
            f"{path} must be HDF5 as Keras 2 writes it, of weights or a whole model."
            f" Received: a file without {attribute}."
        )
    values = np.ravel(group.attrs[attribute])
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _datasets(group: h5py.Group, layers: list[str], path: str) -> dict[str, h5py.Dataset]:
    """Returns all weights by their names in Keras 3.

    A model within the model lists the weights of its layers as its own; the names are
    the same.
    """
    found = {}
    for layer in layers:
        layer_group = _group(group, layer, path)
        for weight in _names(layer_group, "weight_names", path):
            name = _keras_3_name(weight)
            if name in found:
                raise InputError(f"{path} must hold each weight once. Received: {name:.80} twice.")
            found[name] = _dataset(layer_group, weight, path)
    size = sum(dataset.nbytes for dataset in found.values())
    if size > _MAX_BYTES:
        raise InputError(
            f"{path} must hold at most {_MAX_BYTES} bytes of weights. Received: {size}."
        )
    return found


def _dataset(group: h5py.Group, weight: str, path: str) -> h5py.Dataset:
    dataset = _own(group, weight, path)
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise InputError(f"{path}: {weight!r:.80} must be a data set within the file.")
    return dataset


def _keras_3_name(weight: str) -> str:
    layer, _, name = weight.removesuffix(":0").rpartition("/")
    layer = _plain_name(layer.rpartition("/")[2])
    return f"{layer}/{name.replace('depthwise_kernel', 'kernel')}"


def _plain_name(layer: str) -> str:
    """Returns the name without the number that Keras gives a second layer of its kind."""
    match = _NUMBERED.fullmatch(layer)
    return match[1] if match else layer


def _read(dataset: h5py.Dataset, name: str, path: str) -> np.ndarray:
    if dataset.dtype.kind not in "fi":
        raise InputError(f"{path}: {name:.80} must be numbers. Received: dtype={dataset.dtype}.")
    array = np.asarray(dataset[()], np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{path}: {name:.80} must be finite. Received: NaN or infinity.")
    return array


def _statistics(arrays: dict[str, np.ndarray], name: str, path: str) -> np.ndarray:
    values = arrays.pop(f"normalization/{name}", None)
    if values is None or values.shape != (3,) or (name == "variance" and (values < 0).any()):
        received = "none" if values is None else values.tolist()
        raise InputError(
            f"{path} must hold the {name} of EfficientNetB0's normalization, a number a channel."
            f" Received: {received!s:.80}."
        )
    return values
