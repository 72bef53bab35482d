"""Test-time augmentation: five fixed further views of an image.

A view is itself a valid network input, uint8 of the same shape, so that the
network cannot tell it from another radiograph.
"""

from keras import ops

BRIGHTNESS = 0.05
"""Added or taken away, as a share of the full range."""

CONTRAST = 0.05
"""Share by which distances from the image's mean grow or shrink."""

VIEWS = ("original", "flip", "brighter", "darker", "more_contrast", "less_contrast")


def further_views(images) -> list:
    """Returns the five views beside the original, in the order of `VIEWS`.

    Each is about half of what the training augmentation may do, so that the
    network has seen as much.

    Args:
      images: uint8 `(batch, 224, 224)`.

    Returns:
      Five tensors like `images`.
    """
    levels = ops.cast(images, "float32")
    mean = ops.mean(levels, axis=(1, 2), keepdims=True)
    shift = 255 * BRIGHTNESS
    return [
        ops.flip(images, axis=2),
        _grey_levels(levels + shift),
        _grey_levels(levels - shift),
        _grey_levels(mean + (levels - mean) * (1 + CONTRAST)),
        _grey_levels(mean + (levels - mean) * (1 - CONTRAST)),
    ]


def _grey_levels(levels):
    return ops.cast(ops.round(ops.clip(levels, 0, 255)), "uint8")
