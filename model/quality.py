"""Checks of one image, by plain counting: what speaks against believing its scores.

Where each limit lies was chosen on 200 radiographs of ChestX-ray14 and their mutations;
`benchmarks/quality_checks.py` measures how often each code is right and wrong.
"""

import re
from collections.abc import Iterable

import numpy as np
from PIL import Image

from schemas.contract import STANDARD_CONTRACT
from schemas.quality import Quality, in_order

_BLANK_RANGE = 8
_LOW_CONTRAST_RANGE = 40
"""Grey levels between the darkest and the brightest hundredth, or twentieth, of the pixels."""

_WHITE, _BLACK = 254, 1
_MOST_WHITE, _MOST_BLACK = 0.02, 0.6
"""Shares of the image, within its frame, that may be as white or as black as this."""

_FRAME_RANGE = 16
"""Grey levels between the darkest and the brightest pixel of a line that is all frame."""

_MOST_FRAME = 0.2
"""Share of the image that a frame may take."""

_MOST_ASPECT = 1.6
"""Longer side by shorter. Cassettes reach 1.25, and detectors 1.5."""

_LATERAL = re.compile(r"^(L|R|LL|RL|LLAT|RLAT|LAT(ERAL)?)$|LATERAL|^(L|R)LD$|DECUB")
"""What manifests and DICOM's View Position call a view from the side, or of one who lies on it.

Read without regard to case, blanks, `_` and `-`. Frontal ones are AP, PA, LLO and the like.
"""

_MEDIASTINUM = ((0.25, 0.55), (0.44, 0.56))
_LUNGS = (((0.25, 0.55), (0.21, 0.39)), ((0.25, 0.55), (0.61, 0.79)))
_ABDOMEN = ((0.75, 0.95), (0.3, 0.7))
_MIDDLE = ((0.1, 0.9), (0.1, 0.9))
_CORNERS = (((0.0, 0.1), (0.0, 0.1)), ((0.0, 0.1), (0.9, 1.0)))
"""Places of a frontal chest: from and to which share of the height, then of the width."""


def image_quality(
    pixels: np.ndarray,
    width: int,
    height: int,
    view_position: str | None = None,
    header_codes: Iterable[Quality] = (),
) -> tuple[Quality, ...]:
    """Returns the codes of one image, in the order of `Quality`; empty where nothing is amiss.

    Of a blank image nothing else is said that is read off its grey levels.

    Args:
      pixels: uint8 `(224, 224)`, 0 to 255: the network's input.
      width, height: Of the whole image, in pixels, as displayed.
      view_position: What the manifest says of it, if anything.
      header_codes: What the header of its file says, as `model.dicom` reads it.
    """
    found = _of_levels(pixels).union(header_codes)
    if view_position is not None and is_lateral(view_position):
        found.add(Quality.LATERAL)
    if min(width, height) < STANDARD_CONTRACT.size:
        found.add(Quality.LOW_RESOLUTION)
    if max(width, height) > _MOST_ASPECT * min(width, height):
        found.add(Quality.ODD_ASPECT)
    return in_order(found)


def is_lateral(view_position: str) -> bool:
    """Returns whether a view position names a view from the side, by a rule of this module."""
    return bool(_LATERAL.search(re.sub(r"[\s_-]", "", view_position).upper()))


def _of_levels(pixels: np.ndarray) -> set[Quality]:
    """Returns the codes that the grey levels alone give.

    What is so faint that a line of the image looks like one of a frame has no `border`.
    """
    counts = _histogram(pixels)
    if _range(counts, 0.01) < _BLANK_RANGE:
        return {Quality.BLANK}
    found = set()
    inside = _inside(pixels)
    if inside.size < pixels.size:
        counts = _histogram(inside)
    if _range(counts, 0.05) < _LOW_CONTRAST_RANGE:
        found.add(Quality.LOW_CONTRAST)
    elif pixels.size - inside.size > _MOST_FRAME * pixels.size:
        found.add(Quality.BORDER)
    white, black = counts[_WHITE:].sum(), counts[: _BLACK + 1].sum()
    if white > _MOST_WHITE * inside.size or black > _MOST_BLACK * inside.size:
        found.add(Quality.CLIPPED)
    if _frontal_evidence(pixels) < 0:
        found.add(Quality.INVERTED_SUSPECT)
    return found


def _histogram(pixels: np.ndarray) -> np.ndarray:
    # Three times as fast as NumPy's.
    return np.array(Image.fromarray(pixels).histogram())


def _range(counts: np.ndarray, tail: float) -> int:
    """Returns the grey levels between the lowest and the highest `tail` of the pixels."""
    reached = np.cumsum(counts)
    low, high = np.searchsorted(reached, (tail * reached[-1], (1 - tail) * reached[-1]))
    return int(high - low)


def _inside(pixels: np.ndarray) -> np.ndarray:
    """Returns what is left without the lines of one grey at the four sides."""
    rows = np.flatnonzero(np.ptp(pixels, axis=1) > _FRAME_RANGE)
    columns = np.flatnonzero(np.ptp(pixels, axis=0) > _FRAME_RANGE)
    if not (len(rows) and len(columns)):
        return pixels
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _frontal_evidence(pixels: np.ndarray) -> float:
    """Returns how much brighter, in grey levels, is what a frontal radiograph shows brighter.

    The mediastinum and the abdomen beside the lungs, and the body beside the air at the
    upper corners. Inverting the image turns the sign, and nothing else does so for all.
    """
    lungs = sum(_mean(pixels, place) for place in _LUNGS) / len(_LUNGS)
    corners = sum(_mean(pixels, place) for place in _CORNERS) / len(_CORNERS)
    return (
        (_mean(pixels, _MEDIASTINUM) - lungs)
        + (_mean(pixels, _ABDOMEN) - lungs)
        + (_mean(pixels, _MIDDLE) - corners)
    )


def _mean(pixels: np.ndarray, place: tuple[tuple[float, float], tuple[float, float]]) -> float:
    (top, bottom), (left, right) = place
    height, width = pixels.shape
    part = pixels[int(top * height) : int(bottom * height), int(left * width) : int(right * width)]
    return int(part.sum(dtype=np.uint32)) / part.size
