"""Overlays: an activation map in colour over the radiograph, with a caption below.

What one looks like, all of it inside 512x512 pixels:

* The radiograph keeps its own aspect ratio and is shrunk until it and the caption
  fit; a smaller one keeps its size. Enlarging would only pretend to detail.
* The network saw the image stretched to a square, so the 7x7 map is stretched back
  over the whole of it, and smoothed.
* The caption is as wide as the image was before it made room, at least 240 pixels;
  margins fill what is left beside the image.

The map is relative to its own maximum: the brightest spot of a weak finding is as
bright as that of a strong one.
"""

import functools
import hashlib
import io
import urllib.parse
from collections.abc import Iterable

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

from schemas.tables import CAM_SIDE

LONGEST_SIDE = 512
"""Height and width that an overlay, caption included, never exceeds, in pixels."""

_STRONGEST_ALPHA = 0.6
"""Share of colour at an activation of 1; the rest is still radiograph."""

# Perceptually uniform, and unlike inferno or magma far from grey at both ends, so
# that it is not taken for anatomy: neither black over lung nor white over bone.
_COLOUR_MAP = "plasma"
_PALETTE = colormaps[_COLOUR_MAP](np.arange(256), bytes=True)[:, :3].tobytes()
_ALPHA = [round(level * _STRONGEST_ALPHA) for level in range(256)]

_MIN_CAPTION_WIDTH = 240
_MAX_CAPTION_HEIGHT = 256
_PADDING = 6
_LEADING = 2
_HEADLINE_PIXELS = 15
_BODY_PIXELS = 12
_DISCLAIMER = "Attention, not localisation."
_BACKGROUND = (16, 16, 16)
_HEADLINE_COLOUR = (255, 255, 255)
_BODY_COLOUR = (190, 190, 190)

_JPEG_QUALITY = 85
_MAX_ID_BYTES = 150
_HASH_DIGITS = 16


def draw_overlay(
    grey: Image.Image,
    grid: np.ndarray,
    *,
    finding: str,
    score: float,
    threshold: float,
    note: str,
) -> Image.Image:
    """Returns the overlay of one finding: mode `RGB`, longest side at most 512.

    Safe in threads.

    Args:
      grey: The radiograph, mode `L`, full size, display orientation.
      grid: float32 `(7, 7)`, row-major as the image, 0 to 1; values outside are
        clipped.
      finding: Its name; underscores are shown as spaces.
      score: What the network gave it, 0 to 1.
      threshold: From which score on it is flagged, 0 to 1.
      note: What the model may be used for. ASCII; cut, and seen to be, where it
        would need over half of the picture.

    Raises:
      ValueError: The radiograph is not grey, or the map cannot be drawn: another
        shape, a value that is not finite, or nothing above 0.
    """
    if grey.mode != "L":
        raise ValueError(f"grey must be of mode L. Received: grey.mode={grey.mode}.")
    _check_grid(grid)
    width = max(_fitted(grey.size, LONGEST_SIDE)[0], _MIN_CAPTION_WIDTH)
    headline = (
        f"{finding.replace('_', ' ')}:",
        f"score {score:.3f},",
        f"threshold {threshold:.3f}",
    )
    caption = _draw_caption(headline, f"{_DISCLAIMER} {note}", width)
    size = _fitted(grey.size, LONGEST_SIDE - caption.height)
    # Shrinking by whole factors first halves the time of a full-size digital radiograph.
    shrunk = grey.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    overlay = Image.new("RGB", (width, size[1] + caption.height), _BACKGROUND)
    overlay.paste(_colour(shrunk, grid), ((width - size[0]) // 2, 0))
    overlay.paste(caption, (0, size[1]))
    return overlay


def overlay_jpeg(grey: Image.Image, grid: np.ndarray, **caption) -> bytes | None:
    """Returns the JPEG file of an overlay; None where the map is zero everywhere.

    Args:
      grey, grid, **caption: As for `draw_overlay`.
    """
    return encode_jpeg(draw_overlay(grey, grid, **caption)) if grid.any() else None


def overlay_note(title: str) -> str:
    """Returns the line that is drawn under each overlay of the model of that title."""
    return f"{title}. Not for diagnosis."


def encode_jpeg(image: Image.Image) -> bytes:
    """Returns the bytes of a JPEG file of `image`, mode `RGB` or `L`."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def overlay_name(image_id: str, finding: str) -> str:
    """Returns where an overlay lies in its folder: `xx/IMAGE.FINDING.jpg`.

    `xx` are the first two hex digits of the id's SHA-256 and spread the overlays over
    256 folders. IMAGE is the percent-encoded id, cut at 150 bytes plus a hash where
    longer. Names are ASCII of under 200 bytes, and distinct ids have distinct names.
    A disk that ignores case can still mix up two ids of up to 150 bytes that differ
    in nothing but case: those that share `xx`, one such pair in 256.

    A link to the file must percent-encode its name once more.

    Args:
      image_id: Any text.
      finding: One of `schemas.findings.FINDINGS`.
    """
    digest = hashlib.sha256(image_id.encode()).hexdigest()
    image = urllib.parse.quote(image_id, safe="")
    if len(image) > _MAX_ID_BYTES:
        image = f"{image[:_MAX_ID_BYTES]}-{digest[:_HASH_DIGITS]}"
    return f"{digest[:2]}/{image}.{finding.replace(' ', '_')}.jpg"


def _check_grid(grid: np.ndarray) -> None:
    if grid.shape != (CAM_SIDE, CAM_SIDE):
        raise ValueError(
            f"grid must be of shape ({CAM_SIDE}, {CAM_SIDE}). Received: grid.shape={grid.shape}."
        )
    finite = int(np.isfinite(grid).sum())
    if finite < grid.size or not (grid > 0).any():
        received = "no value above 0" if finite == grid.size else f"{grid.size - finite} not finite"
        raise ValueError(
            f"grid must be finite with a value above 0. Received: {received}."
            " Record the finding without an overlay: there is nothing to draw."
        )


def _fitted(size: tuple[int, int], height: int) -> tuple[int, int]:
    """Returns the size shrunk in its aspect ratio to 512 pixels wide and `height` high."""
    scale = min(LONGEST_SIDE / size[0], height / size[1], 1.0)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def _colour(shrunk: Image.Image, grid: np.ndarray) -> Image.Image:
    """Returns the image, mode `RGB`, the more coloured the higher the activation."""
    # In the 256 steps of the palette: the last bits of a map differ from batch to
    # batch, and the picture should not.
    cells = Image.fromarray(np.rint(np.clip(grid, 0, 1) * 255).astype(np.float32) / 255)
    smooth = np.asarray(cells.resize(shrunk.size, Image.Resampling.BICUBIC))
    # Bicubic curves overshoot beside steep steps.
    levels = Image.fromarray(np.rint(np.clip(smooth, 0, 1) * 255).astype(np.uint8))
    alpha = levels.point(_ALPHA)
    levels.putpalette(_PALETTE)
    return Image.composite(levels.convert("RGB"), shrunk.convert("RGB"), alpha)


def _draw_caption(headline: Iterable[str], body: str, width: int) -> Image.Image:
    lines = []
    for font, colour, units in (
        (_font(_HEADLINE_PIXELS), _HEADLINE_COLOUR, headline),
        (_font(_BODY_PIXELS), _BODY_COLOUR, body.split()),
    ):
        lines += [(font, colour, line) for line in _wrap(units, font, width - 2 * _PADDING)]
    bottoms = _PADDING + np.cumsum([sum(font.getmetrics()) + _LEADING for font, _, _ in lines])
    shown = int((bottoms <= _MAX_CAPTION_HEIGHT - _PADDING).sum())
    if shown < len(lines):
        font, colour, line = lines[shown - 1]
        lines[shown - 1] = font, colour, line[:-3] + "..."
    caption = Image.new("RGB", (width, int(bottoms[shown - 1]) + _PADDING), _BACKGROUND)
    draw = ImageDraw.Draw(caption)
    for (font, colour, line), bottom in zip(lines[:shown], bottoms.tolist(), strict=False):
        draw.text((_PADDING, bottom), line, colour, font, anchor="ld")
    return caption


def _wrap(units: Iterable[str], font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Returns lines of at most `width` pixels; a unit is split only where it must be."""
    lines = [""]
    for unit in units:
        longer = f"{lines[-1]} {unit}".lstrip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for character in unit:
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return lines


@functools.cache
def _font(pixels: int) -> ImageFont.FreeTypeFont:
    """Returns Pillow's own font, the same on every machine; it holds ASCII and little else."""
    return ImageFont.load_default(pixels)
