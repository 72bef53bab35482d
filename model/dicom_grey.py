"""From the stored values of a DICOM image to grey levels, as the standard has it shown.

Grey goes through the transforms of PS3.3 C.11 and PS3.4 N.2 in their order:

| step | what happens |
|---|---|
| stored value | BitsStored bits below HighBit, signed as PixelRepresentation says; others ignored |
| modality | the Modality LUT, or RescaleSlope and RescaleIntercept, or nothing |
| VOI | the first VOI LUT; else the first window, by VOILUTFunction; else nothing |
| scale | of the range that the last transform defines, whatever part of it the image uses: \
a LUT's bits, a window's output, or what BitsStored bits become in the modality step |
| presentation | inverted where PresentationLUTShape is INVERSE, or, where it says nothing, \
PhotometricInterpretation is MONOCHROME1 |
| padding | PixelPaddingValue, up to PixelPaddingRangeLimit, is black and no part of a range |

MONOCHROME1 with INVERSE is inverted once: the standard demands the one of the other, and both
say that low values are white. Where they contradict each other the shape decides, which says
what comes out of the transforms; the photometric interpretation says it only by default.

Colour is shown by its luma (ITU-R 601): that of RGB and of a palette's RGB, or the first sample
of YBR, which is one. Each sample is scaled from BitsStored bits to 8; of a 16-bit palette
entry the high byte counts. Modality and VOI steps are none of colour.
"""

import numpy as np
from PIL import Image

from model.dicom_format import PixelFormat
from model.dicom_header import Elements, invalid

_BLOCK = 1 << 17
"""Pixels looked up at once: NumPy makes an index of 8 bytes of each."""


def to_grey(cells: np.ndarray, pixel_format: PixelFormat, elements: Elements) -> np.ndarray:
    """Returns the image in grey: uint8 `(rows, columns)`, 0 black, 255 white.

    Args:
      cells: As `model.dicom_pixels.read_cells` returns them.
      pixel_format: Of them.
      elements: Of the header.

    Raises:
      ImageError: The header describes no such transform.
    """
    table = _table(pixel_format, elements)
    levels = np.empty(cells.shape, np.uint8)
    flat_cells, flat_levels = cells.reshape(-1), levels.reshape(-1)
    for start in range(0, cells.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        np.take(table, flat_cells[block], out=flat_levels[block], mode="clip")
    return levels if levels.ndim == 2 else _luma(levels)


def _table(pixel_format: PixelFormat, elements: Elements) -> np.ndarray:
    """Returns the level of each value that a cell can have: uint8 `(2 ** bits_allocated,)`."""
    photometric = pixel_format.photometric_interpretation
    with np.errstate(all="ignore"):  # What overflows is met by _checked.
        if photometric.startswith("MONOCHROME"):
            return grey_table(pixel_format, elements)
        stored = _stored_values(pixel_format)
        if photometric == "PALETTE COLOR":
            return _palette_table(stored, pixel_format, elements)
        levels = stored / (2**pixel_format.bits_stored - 1) * 255
        if "PARTIAL" in photometric:  # black at 16, white at 235
            levels = np.clip((levels - 16) * (255 / 219), 0, 255)
        return np.rint(levels).astype(np.uint8)


def grey_table(pixel_format: PixelFormat, elements: Elements) -> np.ndarray:
    """Returns what `to_grey` makes of each value that a cell of a grey image can have.

    Raises:
      ImageError: The header describes no such transform.
    """
    stored = _stored_values(pixel_format)
    padding = _is_padding(stored, pixel_format, elements)
    if padding.all():
        raise invalid("PixelPaddingValue leaves no other value")
    values, low, high = _modality_values(stored, stored[~padding], elements)
    levels = _voi_levels(values, low, high, elements)
    if _is_inverted(pixel_format, elements):
        levels = 255 - levels
    table = np.rint(levels).astype(np.uint8)
    table[padding] = 0
    return table


def _stored_values(pixel_format: PixelFormat) -> np.ndarray:
    bits = pixel_format.bits_stored
    cells = np.arange(1 << pixel_format.bits_allocated)
    values = (cells >> (pixel_format.high_bit + 1 - bits)) & ((1 << bits) - 1)
    if pixel_format.signed:
        values -= (values >> (bits - 1)) << bits
    return values


def _is_padding(stored: np.ndarray, pixel_format: PixelFormat, elements: Elements) -> np.ndarray:
    """Returns which cells are padding; PS3.3 C.7.5.1.1.2."""
    first = elements.integer("PixelPaddingValue")
    if first is None:
        return np.zeros(stored.shape, bool)
    limit = elements.integer("PixelPaddingRangeLimit")
    span = 1 << pixel_format.bits_allocated
    cells = np.arange(span)
    if pixel_format.signed:
        cells -= (cells >= span // 2) * span
    lowest = -span // 2 if pixel_format.signed else 0
    # Writers give a negative value as unsigned and the other way round.
    ends = sorted(
        (end - lowest) % span + lowest for end in (first, first if limit is None else limit)
    )
    # A value that needs more than BitsStored bits marks whole cells.
    seen = stored if stored.min() <= ends[0] and ends[1] <= stored.max() else cells
    return (seen >= ends[0]) & (seen <= ends[1])


def _modality_values(
    stored: np.ndarray, not_padding: np.ndarray, elements: Elements
) -> tuple[np.ndarray, float, float]:
    """Returns the values after the modality step, and the range that it defines; C.11.1."""
    if lut := elements.first_item("ModalityLUTSequence"):
        values, highest = _look_up(stored, lut, signed=stored.min() < 0)
        return values, 0, highest
    slope, intercept = (elements.decimal(f"Rescale{name}") for name in ("Slope", "Intercept"))
    if (slope is None) != (intercept is None) or slope == 0:
        raise invalid("RescaleSlope and RescaleIntercept must both be given, the slope not as 0")
    if slope is None:
        slope, intercept = 1, 0
    ends = not_padding.min() * slope + intercept, not_padding.max() * slope + intercept
    return stored * slope + intercept, min(ends), max(ends)


def _voi_levels(values: np.ndarray, low: float, high: float, elements: Elements) -> np.ndarray:
    """Returns the values after the VOI step, scaled to 0 to 255; C.11.2."""
    if lut := elements.first_item("VOILUTSequence"):
        entries, highest = _look_up(values, lut, signed=low < 0)
        return entries / highest * 255
    center, width = (elements.decimal(f"Window{name}") for name in ("Center", "Width"))
    if (center is None) != (width is None):
        raise invalid("WindowCenter and WindowWidth must both be given")
    if center is None:
        return _checked(np.clip((values - low) / (high - low), 0, 1) * 255)
    function = elements.text("VOILUTFunction") or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise invalid("VOILUTFunction is none of the standard")
    if width < 1 if function == "LINEAR" else width <= 0:
        raise invalid("WindowWidth is too small")
    return _checked(window_levels(values, center, width, function))


def window_levels(
    values: np.ndarray, center: float, width: float, function: str = "LINEAR"
) -> np.ndarray:
    """Returns what a window makes of values, 0 to 255; PS3.3 C.11.2.1.2 and C.11.2.1.3.

    Args:
      values: After the modality step.
      center: The window's, in the values' unit.
      width: Likewise; at least 1 for `LINEAR`, else above 0.
      function: `LINEAR`, `LINEAR_EXACT` or `SIGMOID`.
    """
    if function == "SIGMOID":
        return 255 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    below, above = values <= center - width / 2, values > center + width / 2
    between = ((values - center) / width + 0.5) * 255
    return np.where(below, 0, np.where(above, 255, between))


def _checked(levels: np.ndarray) -> np.ndarray:
    if not ((levels >= 0) & (levels <= 255)).all():
        raise invalid("the transforms of the pixels' values are out of all range")
    return levels


def _is_inverted(pixel_format: PixelFormat, elements: Elements) -> bool:
    shape = elements.text("PresentationLUTShape")
    if shape in ("IDENTITY", "INVERSE"):
        return shape == "INVERSE"
    return pixel_format.photometric_interpretation == "MONOCHROME1"


def _look_up(values: np.ndarray, lut: Elements, *, signed: bool) -> tuple[np.ndarray, int]:
    """Returns what a LUT makes of values, and its highest possible entry; C.11.1.1, C.11.2.1.1."""
    entries, first, bits = lut.descriptor("LUTDescriptor", signed)
    table = _entries(lut, "LUTData", entries)
    if not 1 <= bits <= 16 or table.max() >= 1 << bits:
        raise invalid("LUTDescriptor and LUTData contradict each other")
    places = np.clip(np.rint(values) - first, 0, entries - 1)
    return table[places.astype(np.intp)].astype(float), (1 << bits) - 1


def _entries(elements: Elements, keyword: str, entries: int) -> np.ndarray:
    data, order = elements.binary(keyword)
    if len(data) == 2 * entries:
        return np.frombuffer(data, f"{order}u2")
    if len(data) in (entries, entries + 1):  # entries of 8 bits may be packed
        return np.frombuffer(data, np.uint8, entries)
    raise invalid(f"{keyword} has not as many entries as described")


def _palette_table(stored: np.ndarray, pixel_format: PixelFormat, elements: Elements) -> np.ndarray:
    """Returns the luma of each palette entry; C.7.6.3.1.5."""
    if "SegmentedRedPaletteColorLookupTableData" in elements:
        raise invalid("a segmented palette, which is not read")
    channels = []
    for name in ("Red", "Green", "Blue"):
        keyword = f"{name}PaletteColorLookupTable"
        entries, first, bits = elements.descriptor(f"{keyword}Descriptor", pixel_format.signed)
        table = _entries(elements, f"{keyword}Data", entries)
        if bits not in (8, 16) or (bits == 8 and table.max() > 255):
            raise invalid(f"{keyword}Descriptor and its data contradict each other")
        places = np.clip(stored - first, 0, entries - 1)
        channels.append((table >> (bits - 8)).astype(np.uint8)[places])
    return _luma(np.stack(channels, axis=1)[np.newaxis])[0]


def _luma(rgb: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(rgb).convert("L"))
