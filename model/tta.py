"""Test-time augmentation: five fixed further views of an image.

A view is itself a valid network input, uint8 of the same shape, so that the
network cannot tell it from another radiograph.
"""

from keras import ops

from schemas.contract import VIEW_BRIGHTNESS, VIEW_CONTRAST


def further_views(images) -> list:
    """Returns the views of `schemas.contract.VIEWS` but the first, in their order.

    Brightness and contrast change half as far as is customary in training, where
    the change is drawn at random: by about its mean.

    Args:
      images: uint8 `(batch, 224, 224)`.

    Returns:
      Five tensors like `images`.
    """
    levels = ops.cast(images, "float32")
    mean = ops.mean(levels, axis=(1, 2), keepdims=True)
    shift = 255 * VIEW_BRIGHTNESS
    return [
        ops.flip(images, axis=2),
        _grey_levels(levels + shift),
        _grey_levels(levels - shift),
        _grey_levels(mean + (levels - mean) * (1 + VIEW_CONTRAST)),
        _grey_levels(mean + (levels - mean) * (1 - VIEW_CONTRAST)),
    ]


def _grey_levels(levels):
    return ops.cast(ops.round(ops.clip(levels, 0, 255)), "uint8")
