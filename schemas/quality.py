"""What speaks against believing an image's scores: the codes of the column `quality`."""

import enum
from collections.abc import Iterable

from schemas.rejects import ImageError, Reason


class Quality(enum.StrEnum):
    """Something amiss with an image, in the order of the column.

    A published code never changes its meaning. `model.quality` says from where on each holds.
    """

    BLANK = "blank"
    """One grey level, or next to it."""
    LOW_CONTRAST = "low_contrast"
    """Grey levels so close together that little is left to see."""
    INVERTED_SUSPECT = "inverted_suspect"
    """As a frontal radiograph looks whose grey levels are inverted."""
    CLIPPED = "clipped"
    """Much of the image is pure white, or most of it pure black."""
    LATERAL = "lateral"
    """The manifest, or the header of its file, calls it a lateral or decubitus view."""
    FAR_FROM_TRAINING = "far_from_training"
    """Further from the model's training images than all but 1 in 1,000 of their kind."""
    LOW_RESOLUTION = "low_resolution"
    """Fewer pixels than the network looks at."""
    BORDER = "border"
    """A wide frame of even grey around the image."""
    ODD_ASPECT = "odd_aspect"
    """Much longer than wide, or the reverse, so that stretching it to a square distorts it."""
    BURNED_IN_ANNOTATION = "burned_in_annotation"
    """The header of its file says that its pixels hold text, which can name a patient."""


GATING = (
    Quality.BLANK,
    Quality.LOW_CONTRAST,
    Quality.INVERTED_SUSPECT,
    Quality.CLIPPED,
    Quality.LATERAL,
    Quality.FAR_FROM_TRAINING,
)
"""What the network cannot have learnt to read. The others leave a chest that it can see, if less
well, and only stand in the row."""


class Gate(enum.StrEnum):
    """What becomes of an image that has a code of `GATING`. It has its codes in any case."""

    FLAG = "flag"
    """It is scored, and ranks behind all others on the worklist."""
    REJECT = "reject"
    """It becomes a reject, for the first of these codes."""
    OFF = "off"
    """Nothing."""


def in_order(codes: Iterable[Quality]) -> tuple[Quality, ...]:
    """Returns codes as the column has them, each once."""
    found = set(codes)
    return tuple(code for code in Quality if code in found)


def gate_error(codes: Iterable[Quality]) -> ImageError | None:
    """Returns why `Gate.REJECT` rejects an image with these codes; None where it does not."""
    codes = in_order(codes)
    reason = next((Reason(code) for code in codes if code in GATING), None)
    return None if reason is None else ImageError(reason, f"quality: {', '.join(codes)}")
