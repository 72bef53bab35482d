"""From the bytes of a file to the network's input, for training and scoring alike."""

import dataclasses

import numpy as np
from PIL import Image

from model.decoding import decode_grey
from schemas.contract import STANDARD_CONTRACT
from schemas.quality import Quality

_SIZE = STANDARD_CONTRACT.size

_REDUCED = 4
"""Times the square's size that a JPEG decoded to a part of its size must keep.

On X-rays no pixel of the square then differs by more than three grey levels from what a
full decode gives, and 0.1 in the mean; with 2 it would be eight.
"""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PreparedImage:
    """One image, ready for the network.

    Attributes:
      pixels: uint8 `(224, 224)`, grey, 0 to 255.
      width: Of the full-size image in display orientation, in pixels.
      height: Likewise.
      header_codes: Quality codes that the file's header gives.
    """

    pixels: np.ndarray
    width: int
    height: int
    header_codes: tuple[Quality, ...] = ()


def prepare(data: bytes) -> PreparedImage:
    """Returns the network's input made from the bytes of one file.

    Raises:
      ImageError: The image cannot be used; the table of `model.decoding` says when.
    """
    grey = decode_grey(data, at_least=_REDUCED * _SIZE)
    return PreparedImage(to_square(grey.image), grey.width, grey.height, grey.header_codes)


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
