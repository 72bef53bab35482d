"""From the bytes of a file to the network's input, for training and scoring alike."""

import dataclasses

import numpy as np
from PIL import Image

from model.decoding import decode_grey
from schemas.contract import STANDARD_CONTRACT

_SIZE = STANDARD_CONTRACT.size


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PreparedImage:
    """One image, ready for the network.

    Attributes:
      pixels: uint8 `(224, 224)`, grey, 0 to 255.
      width: Of the full-size image in display orientation, in pixels.
      height: Likewise.
    """

    pixels: np.ndarray
    width: int
    height: int


def prepare(data: bytes) -> PreparedImage:
    """Returns the network's input made from the bytes of one file.

    Raises:
      ImageError: The image cannot be used; the table of `model.decoding` says when.
    """
    grey = decode_grey(data)
    return PreparedImage(to_square(grey), grey.width, grey.height)


def to_square(grey: Image.Image) -> np.ndarray:
    """Returns uint8 `(224, 224)`, 0 to 255, C-contiguous: the image stretched to a square.

    This is what `schemas.contract.STANDARD_CONTRACT` names.

    Args:
      grey: Mode `L`, any size, as `model.decoding.decode_grey` returns it.

    Raises:
      ValueError: The image is not grey.
    """
    if grey.mode != "L":
        raise ValueError(f"grey must be of mode L. Received: grey.mode={grey.mode}.")
    # Pillow's filters widen with the reduction, so BILINEAR averages when it shrinks.
    return np.asarray(grey.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR))
