"""Random changes of training images, drawn on the host and applied on the device.

What is drawn depends on a generator alone, and what is done with it on no state, so
that an epoch can be repeated exactly.
"""

import keras
import numpy as np
from keras import ops

from model.training_config import Augmentation

_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)


def draw_changes(
    augmentation: Augmentation, count: int, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns how each of `count` images is to change.

    Args:
      augmentation: What may change, and how much.
      count: Number of images.
      size: Height and width of the images, in pixels.
      rng: Decides.

    Returns:
      float32 `(count, 8)`: projective transforms from places in the new image to
      places in the old one, as `keras.ops.image.affine_transform` takes them; and
      float32 `(count, 2)`: what to add to each grey level, in grey levels, and what
      to multiply its distance from the mean with.
    """
    # All is drawn whatever is on, so that switching one change off leaves the others.
    mirrored = (rng.random(count) < 0.5) & augmentation.flip
    kept = rng.uniform(augmentation.zoom, 1.0, count)
    left, top = rng.uniform(0, 1, (2, count)) * (1 - kept) * (size - 1)
    shift = 255 * augmentation.brightness * rng.uniform(-1, 1, count)
    stretch = 1 + augmentation.contrast * rng.uniform(-1, 1, count)
    places = np.tile(np.array(_IDENTITY, np.float32), (count, 1))
    places[:, 0] = np.where(mirrored, -kept, kept)
    places[:, 2] = np.where(mirrored, left + kept * (size - 1), left)
    places[:, 4] = kept
    places[:, 5] = top
    return places, np.stack([shift, stretch], axis=1).astype(np.float32)


class ChangeImages(keras.layers.Layer):
    """Applies drawn changes, then shrinks to the size that the network takes.

    Inputs: uint8 `(batch, rows, columns)` and what `draw_changes` returns. Output:
    uint8 `(batch, size, size)`, so that the network sees whole grey levels, as it
    does when it scores.
    """

    def __init__(self, size: int, **kwargs):
        """Shrinks to `size` pixels; always computes in float32."""
        super().__init__(dtype="float32", **kwargs)
        self._size = size

    def call(self, images, places, levels):
        """Returns the changed images."""
        grey = ops.expand_dims(ops.cast(images, "float32"), -1)
        grey = ops.image.affine_transform(grey, places, interpolation="bilinear")
        mean = ops.mean(grey, axis=(1, 2, 3), keepdims=True)
        shift, stretch = (levels[:, k, None, None, None] for k in (0, 1))
        return shrink((grey - mean) * stretch + mean + shift, self._size)


def shrink(grey, size: int):
    """Returns uint8 `(batch, size, size)` from float32 `(batch, rows, columns, 1)`."""
    if grey.shape[1] != size:
        grey = ops.image.resize(grey, (size, size), interpolation="bilinear", antialias=True)
    return ops.cast(ops.round(ops.clip(grey[..., 0], 0, 255)), "uint8")
