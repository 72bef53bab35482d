"""What the machine has to compute on, under whichever backend Keras uses."""

import os

import keras


def prepare_gpus() -> bool:
    """Lets TensorFlow take GPU memory as it needs it; returns whether there is a GPU."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        return bool(gpus)
    return bool(keras.distribution.list_devices("gpu"))


def gpu_names() -> list[str]:
    """Returns what TensorFlow calls the GPUs of this machine; none where there is none."""
    import tensorflow as tf

    details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
    return [found.get("device_name", "GPU") for found in details]


def gpu_ids() -> tuple[str, ...]:
    """Returns what CUDA_VISIBLE_DEVICES calls each GPU that this process sees."""
    import tensorflow as tf

    count = len(tf.config.list_physical_devices("GPU"))
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(given.split(",") if given else map(str, range(count)))[:count]


def resolve_precision(precision: str) -> str:
    """Returns the Keras dtype policy that `precision` stands for on this machine.

    `auto` is mixed_float16 where there is a GPU and float32 elsewhere; any other
    name stands for itself.
    """
    if precision != "auto":
        return precision
    return "mixed_float16" if prepare_gpus() else "float32"
