"""From stored values to grey levels: every table equals the standard's text, value by value."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.tag import Tag

from model.dicom_format import PixelFormat
from model.dicom_grey import grey_table, to_grey, window_levels
from model.dicom_header import Elements
from schemas.rejects import ImageError, Reason

many = settings(deadline=None, max_examples=100)
some = settings(deadline=None, max_examples=30)
"""For whole tables of 65,536 levels."""
FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
numbers = st.floats(-5000, 5000).map(lambda number: float(f"{number:.6g}"))


def elements_of(**values):
    """Returns attributes as an explicit little endian file holds them."""
    raw = []
    for keyword, value in values.items():
        if isinstance(value, int):
            vr, data = "SS" if value < 0 else "US", value.to_bytes(2, "little", signed=value < 0)
        else:
            vr, data = "DS" if isinstance(value, float) else "CS", str(value).encode()
        raw.append(RawDataElement(Tag(keyword), vr, len(data), data, 0, False, True))
    return Elements(raw)


def pixel_format(bits=12, *, allocated=16, high=None, signed=False, photometric="MONOCHROME2"):
    high = bits - 1 if high is None else high
    return PixelFormat(1, 1, 1, photometric, allocated, bits, high, signed, False)


def window_of_the_standard(value, center, width, function):
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2 for an output of 0 to 255."""
    if function == "SIGMOID":
        exponent = -4 * (value - center) / width
        return 0.0 if exponent > 700 else 255 / (1 + math.exp(exponent))
    if function == "LINEAR":
        if value <= center - 0.5 - (width - 1) / 2:
            return 0.0
        if value > center - 0.5 + (width - 1) / 2:
            return 255.0
        return ((value - (center - 0.5)) / (width - 1) + 0.5) * 255
    if value <= center - width / 2:
        return 0.0
    if value > center + width / 2:
        return 255.0
    return ((value - center) / width + 0.5) * 255


@many
@given(
    values=st.lists(numbers, min_size=1, max_size=40),
    center=numbers,
    width=st.floats(1, 10_000),
    function=st.sampled_from(FUNCTIONS),
)
def test_window_levels_are_those_of_the_standard(values, center, width, function):
    with np.errstate(all="ignore"):
        levels = window_levels(np.array(values), center, width, function)
    expected = [window_of_the_standard(value, center, width, function) for value in values]
    # At a step of no width the last bit of a number decides.
    assert width < 1.001 or np.abs(levels - expected).max() < 1e-6


@pytest.mark.parametrize(
    "function, levels",
    [
        ("LINEAR", {-1: 0, 0: 0, 1: 1, 127: 127, 128: 128, 254: 254, 255: 255, 256: 255}),
        ("LINEAR_EXACT", {0: 0, 64: 63.75, 128: 127.5, 256: 255, 300: 255}),
        ("SIGMOID", {128: 127.5}),
    ],
)
def test_window_levels_of_center_128_and_width_256(function, levels):
    made = window_levels(np.array(list(levels)), 128, 256, function)
    assert made.tolist() == pytest.approx(list(levels.values()))


@some
@given(
    bits=st.integers(1, 16),
    signed=st.booleans(),
    slope=numbers.filter(lambda slope: abs(slope) > 1e-3),
    intercept=numbers,
    center=numbers,
    width=st.floats(2, 5000),
    function=st.sampled_from(FUNCTIONS),
    photometric=st.sampled_from(("MONOCHROME1", "MONOCHROME2")),
    data=st.data(),
)
def test_grey_table_of_a_rescaled_window_equals_the_steps_one_by_one(
    bits, signed, slope, intercept, center, width, function, photometric, data
):
    elements = elements_of(
        RescaleSlope=slope,
        RescaleIntercept=intercept,
        WindowCenter=center,
        WindowWidth=width,
        VOILUTFunction=function,
    )
    high = data.draw(st.integers(bits - 1, 15))
    form = pixel_format(bits, high=high, signed=signed, photometric=photometric)
    with np.errstate(all="ignore"):
        table = grey_table(form, elements)
    for cell in data.draw(st.lists(st.integers(0, 65535), min_size=1, max_size=20)):
        text = f"{cell:016b}"[15 - high : 15 - high + bits]
        stored = int(text, 2) - (2**bits if signed and text[0] == "1" else 0)
        value = stored * slope + intercept
        level = window_of_the_standard(value, center, width, function)
        expected = 255 - level if photometric == "MONOCHROME1" else level
        assert abs(int(table[cell]) - expected) <= 0.5 + 1e-6


@some
@given(bits=st.integers(1, 16), signed=st.booleans(), slope=st.sampled_from((1.0, -2.5, 0.01)))
def test_grey_table_without_a_window_spans_the_bits_that_are_stored(bits, signed, slope):
    table = grey_table(
        pixel_format(bits, signed=signed),
        elements_of(RescaleSlope=slope, RescaleIntercept=7.0),
    )
    lowest = 1 << (bits - 1) if signed else 0
    ordered = np.roll(table[: 1 << bits], -lowest)
    expected = np.rint(np.arange(1 << bits) / ((1 << bits) - 1) * 255)
    difference = ordered - (expected if slope > 0 else expected[::-1])
    assert np.abs(difference).max() <= (0 if slope == 1 else 1)
    assert (ordered[0], ordered[-1]) == ((0, 255) if slope > 0 else (255, 0))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_grey_table_of_a_window_agrees_with_pydicom(function):
    header = {"RescaleSlope": 0.5, "RescaleIntercept": -1000.0}
    header |= {"WindowCenter": 40.5, "WindowWidth": 900.0, "VOILUTFunction": function}
    dataset = Dataset()
    dataset.BitsStored, dataset.PixelRepresentation = 12, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    for keyword, value in header.items():
        setattr(dataset, keyword, value)
    shown = apply_voi_lut(apply_modality_lut(np.arange(4096), dataset), dataset)
    low, high = -1000, 0.5 * 4095 - 1000  # pydicom keeps the range of the modality step
    expected = (shown - low) / (high - low) * 255
    table = grey_table(pixel_format(), elements_of(**header))[:4096]
    assert np.abs(table - expected).max() <= 0.5 + 1e-6


@some
@given(first=st.integers(0, 4095), limit=st.integers(0, 4095), data=st.data())
def test_grey_table_padding_is_black_and_the_rest_spans_its_own_ends(first, limit, data):
    elements = elements_of(PixelPaddingValue=first, PixelPaddingRangeLimit=limit)
    low, high = sorted((first, limit))
    kept = [value for value in range(4096) if not low <= value <= high]
    if len(kept) < 2:
        with pytest.raises(ImageError) as caught:
            grey_table(pixel_format(), elements)
        assert caught.value.reason is Reason.INVALID_HEADER
        return
    table = grey_table(pixel_format(), elements)
    assert not table[low : high + 1].any()
    for value in data.draw(st.lists(st.sampled_from(kept), min_size=1, max_size=9)):
        expected = (value - kept[0]) / (kept[-1] - kept[0]) * 255
        assert abs(table[value] - expected) <= 0.5 + 1e-9


def test_to_grey_of_more_pixels_than_are_looked_up_at_once_gives_each_its_level():
    cells = np.arange(600 * 500, dtype=np.uint16).reshape(600, 500) % 4096
    levels = to_grey(cells, pixel_format(), elements_of())
    assert np.array_equal(levels, np.rint(cells / 4095 * 255))
    turned = to_grey(cells.T, pixel_format(), elements_of())
    assert np.array_equal(turned, levels.T)
