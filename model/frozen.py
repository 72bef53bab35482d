"""Functions of images as graphs whose variables are constants, and how they are called."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from model.devices import prepare_gpus
from schemas.contract import STANDARD_CONTRACT

_PIECE = 8
"""Images of a call on a CPU: what a layer makes of so few is still near when the next one reads
it."""

_CALLERS = 2
"""Threads that call on a CPU: while one is at what a single core does, the other keeps the rest
busy. `benchmarks/README.md` has both measured."""


def freeze(function: Callable) -> Callable:
    """Returns `function`, of uint8 `(batch, 224, 224)`, as one graph."""
    size = STANDARD_CONTRACT.size
    signature = tf.TensorSpec((None, size, size), tf.uint8, name="images")
    concrete = tf.function(function, autograph=False).get_concrete_function(signature)
    return convert_variables_to_constants_v2(concrete)


class FrozenGraph:
    """Calls a graph as suits the device. Thread-safe."""

    def __init__(self, graph: Callable):
        """Takes what `freeze` returned."""
        self._graph = graph
        self._callers = None if prepare_gpus() else ThreadPoolExecutor(_CALLERS)

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Returns the graph's outputs, each with an entry an image.

        Args:
          images: uint8 `(batch, 224, 224)`, 0 to 255, at least one.

        Raises:
          tensorflow.errors.OpError: TensorFlow failed.
        """
        if self._callers is None:
            padded = self._call(pad_to_power_of_two(images))
            return [output[: len(images)] for output in padded]
        pieces = [images[start : start + _PIECE] for start in range(0, len(images), _PIECE)]
        outputs = self._callers.map(self._call, pieces)
        return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]

    def _call(self, images: np.ndarray) -> list[np.ndarray]:
        return [output.numpy() for output in self._graph(tf.constant(images))]


def pad_to_power_of_two(images: np.ndarray) -> np.ndarray:
    """Returns `images` with black ones appended, so that a GPU sees few shapes."""
    wanted = 1 << (len(images) - 1).bit_length()
    return np.pad(images, ((0, wanted - len(images)), (0, 0), (0, 0)))
