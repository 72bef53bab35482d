"""Functions of images as graphs whose variables are constants, on what suits the device.

On a CPU in float32 that is LiteRT, which computes this network nearly twice as fast as TensorFlow
there; anywhere else TensorFlow. `benchmarks/README.md` has both measured.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from model.devices import prepare_gpus
from model.standard_error import standard_error_without
from schemas.contract import STANDARD_CONTRACT

FrozenGraph = Callable[[np.ndarray], list[np.ndarray]]
"""Takes uint8 `(batch, 224, 224)`, 0 to 255, at least one image; returns the function's outputs,
each with an entry an image. Thread-safe."""

_GREETING = b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU."
"""LiteRT writes it with the first interpreter of a process, whatever the log level."""


class InferenceError(Exception):
    """A graph could not be computed, for another reason than memory."""


def freeze(function: Callable, precision: str = "float32") -> FrozenGraph:
    """Traces `function` and returns it as a graph that no longer knows its variables.

    Args:
      function: From a tensor uint8 `(batch, 224, 224)` to a list of tensors.
      precision: The Keras dtype policy that it computes in.
    """
    if precision == "float32" and not prepare_gpus():
        return LiteGraph(function)
    return TensorFlowGraph(function)


def _trace(function: Callable, images: int | None) -> Callable:
    """Returns `function`, of so many images or of any number, as TensorFlow's."""
    size = STANDARD_CONTRACT.size
    signature = tf.TensorSpec((images, size, size), tf.uint8, name="images")
    return tf.function(function, autograph=False).get_concrete_function(signature)


class LiteGraph:
    """A graph on LiteRT, an image a call, a thread a core.

    Each thread has an interpreter of its own, so that no core waits for another within a layer,
    and what a layer makes of one image is still near when the next one reads it. An image is
    computed alone, so that its outputs are the same bits in any batch.
    """

    def __init__(self, function: Callable):
        """Traces and converts `function`, as `freeze` takes it."""
        # A shape that is known leaves nothing to compute at each call but the network.
        concrete = _trace(function, images=1)
        # The module, an empty one, is for graphs that would lose their variables otherwise.
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module())
        # As a saved model it would take twice as long.
        converter.experimental_lower_to_saved_model = False
        self._model = converter.convert()
        with standard_error_without(_GREETING):
            interpreter = self._new_interpreter()
        (self._input,) = (given["index"] for given in interpreter.get_input_details())
        # By name: the order may be another than the function's.
        indices = {output["name"]: output["index"] for output in interpreter.get_output_details()}
        self._outputs = [indices[output.op.name] for output in concrete.outputs]
        self._of_thread = threading.local()
        self._threads = ThreadPoolExecutor(_cores(), thread_name_prefix="LiteRT")

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """See `FrozenGraph`; raises `InferenceError`."""
        outputs = list(self._threads.map(self._one, images))
        return [np.concatenate(part) for part in zip(*outputs, strict=True)]

    def _one(self, image: np.ndarray) -> list[np.ndarray]:
        if not hasattr(self._of_thread, "interpreter"):
            self._of_thread.interpreter = self._new_interpreter()
        interpreter = self._of_thread.interpreter
        interpreter.set_tensor(self._input, image[np.newaxis])
        try:
            interpreter.invoke()
        except RuntimeError as error:
            raise InferenceError("LiteRT") from error
        return [interpreter.get_tensor(index) for index in self._outputs]

    def _new_interpreter(self) -> Interpreter:
        interpreter = Interpreter(model_content=self._model, num_threads=1)
        interpreter.allocate_tensors()
        return interpreter


def _cores() -> int:
    """Returns as many as TensorFlow's own variable grants, by which `--workers` share them."""
    return int(os.environ.get("TF_NUM_INTRAOP_THREADS", 0)) or os.cpu_count() or 1


class TensorFlowGraph:
    """A graph on TensorFlow, a whole batch a call."""

    def __init__(self, function: Callable):
        """Traces `function`, as `freeze` takes it."""
        self._graph = convert_variables_to_constants_v2(_trace(function, images=None))

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """See `FrozenGraph`.

        Raises:
          MemoryError: So many do not fit in the device's memory.
          InferenceError: TensorFlow failed otherwise.
        """
        try:
            outputs = self._graph(tf.constant(pad_to_power_of_two(images)))
            return [output.numpy()[: len(images)] for output in outputs]
        except tf.errors.ResourceExhaustedError as error:
            raise MemoryError(f"{len(images)} images do not fit in the device's memory") from error
        except tf.errors.OpError as error:
            raise InferenceError(type(error).__name__) from error


def pad_to_power_of_two(images: np.ndarray) -> np.ndarray:
    """Returns `images` with black ones appended, so that a GPU sees few shapes."""
    wanted = 1 << (len(images) - 1).bit_length()
    return np.pad(images, ((0, wanted - len(images)), (0, 0), (0, 0)))
