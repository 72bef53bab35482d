"""DICOM: every form of one picture gives its PNG's square, and every other file its reason."""

import concurrent.futures
import logging
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import uid
from pydicom.sr.codedict import Code, codes

from model import decoding, dicom, dicom_header, dicom_pixels
from model.decoding import decode_grey
from model.dicom import is_dicom
from model.overlays import draw_overlay
from model.phantoms import draw_phantom
from model.preprocessing import prepare
from schemas.rejects import ImageError, Reason
from scripts.dicom_files import CANARY, dicom_file, lookup_table
from scripts.png_files import png_file
from tests.bad_files import image_file

GREY = draw_phantom(3, 0, 240).pixels[:, :200]
SMALL = GREY[::8, :192:8].copy()
quick = settings(deadline=None, max_examples=60)
TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
NATIVE = uid.UncompressedTransferSyntaxes
EXACT = (
    *(uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless),
    *(uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.RLELossless),
)
LOSSY = (uid.JPEGLSNearLossless, uid.JPEG2000, uid.HTJ2K)


def cells_of(grey, bits, signed=False):
    """Returns values that fill the range of so many bits as the levels fill 0 to 255."""
    levels = np.rint(grey * ((2**bits - 1) / 255)).astype(int)
    kind = f"{'i' if signed else 'u'}{1 if bits == 8 else 2}"
    return (levels - (2 ** (bits - 1) if signed else 0)).astype(kind)


def grey_of(data):
    return np.asarray(decode_grey(data).image).astype(int)


def reject_of(data):
    with pytest.raises(ImageError) as caught:
        prepare(data)
    return caught.value


def assert_square_of(data, grey):
    prepared, expected = prepare(data), prepare(png_file(grey))
    assert (prepared.width, prepared.height) == (expected.width, expected.height)
    assert np.abs(prepared.pixels.astype(int) - expected.pixels).max() <= 1


# One picture in every form


@pytest.mark.parametrize("look", ["MONOCHROME2", "MONOCHROME1", "INVERSE"])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_prepare_dicom_of_any_bits_gives_the_square_of_the_png(bits, signed, look):
    header = {"BitsStored": bits}
    if look == "INVERSE":
        header["PresentationLUTShape"] = look
    else:
        header["PhotometricInterpretation"] = look
    grey = GREY if look == "MONOCHROME2" else 255 - GREY
    assert_square_of(dicom_file(cells_of(grey, bits, signed), **header), GREY)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("syntax", [*NATIVE, *EXACT], ids=lambda syntax: syntax.keyword)
def test_decode_dicom_of_any_lossless_transfer_syntax_gives_every_pixel(syntax, bits, signed):
    data = dicom_file(cells_of(GREY, bits, signed), syntax, BitsStored=bits)
    assert np.array_equal(grey_of(data), GREY)


@pytest.mark.parametrize(
    "syntax, bits",
    [
        (uid.JPEGBaseline8Bit, 8),
        (uid.JPEGExtended12Bit, 8),
        (uid.JPEGExtended12Bit, 12),
        *((syntax, bits) for syntax in LOSSY for bits in (8, 12, 16)),
    ],
    ids=lambda value: getattr(value, "keyword", value),
)
def test_prepare_dicom_of_any_lossy_transfer_syntax_gives_the_square_of_the_png(syntax, bits):
    assert_square_of(dicom_file(cells_of(GREY, bits), syntax, BitsStored=bits), GREY)


@pytest.mark.parametrize(
    "syntax, signed",
    [
        *((syntax, False) for syntax in LOSSY),
        *((syntax, True) for syntax in LOSSY[1:]),  # a JPEG-LS codestream knows no signs
    ],
    ids=lambda value: getattr(value, "keyword", "signed" if value else "unsigned"),
)
def test_decode_lossy_dicom_white_never_runs_over_into_black(syntax, signed):
    noise = np.random.default_rng(1).integers(0, 2, (64, 64)) * 255
    cells = cells_of(noise, 12, signed)
    levels = grey_of(dicom_file(cells, syntax, BitsStored=12))
    assert np.abs(levels - noise).max() < 40


def linear(value, center, width):
    """PS3.3 C.11.2.1.2.1 with an output of 0 to 255."""
    if value <= center - 0.5 - (width - 1) / 2:
        return 0
    if value > center - 0.5 + (width - 1) / 2:
        return 255
    return ((value - (center - 0.5)) / (width - 1) + 0.5) * 255


CURVE = np.rint(4095 * np.linspace(0, 1, 4096) ** 2).astype(int)
SHORT_CURVE = CURVE[1000:3000:1]
"""As a table from 1,000: what is below takes its first entry, what is above its last."""

TRANSFORMS = {
    "rescale": ({"RescaleSlope": 2.5, "RescaleIntercept": -1024}, lambda v: v / 4095 * 255),
    "falling rescale": (
        {"RescaleSlope": -1, "RescaleIntercept": 9},
        lambda v: 255 - v / 4095 * 255,
    ),
    "window": ({"WindowCenter": 2048, "WindowWidth": 2001}, lambda v: linear(v, 2048, 2001)),
    "first of two windows": (
        {"WindowCenter": [900, 2048], "WindowWidth": [1500.5, 4096]},
        lambda v: linear(v, 900, 1500.5),
    ),
    "window of width 1": (
        {"WindowCenter": 2000, "WindowWidth": 1},
        lambda v: 0 if v <= 1999.5 else 255,
    ),
    "window after rescale": (
        {
            **{"RescaleSlope": 0.5, "RescaleIntercept": -1000},
            **{"WindowCenter": 40, "WindowWidth": 400},
        },
        lambda v: linear(0.5 * v - 1000, 40, 400),
    ),
    "exact window": (
        {"WindowCenter": 2048, "WindowWidth": 1000, "VOILUTFunction": "LINEAR_EXACT"},
        lambda v: min(max(((v - 2048) / 1000 + 0.5) * 255, 0), 255),
    ),
    "sigmoid window": (
        {"WindowCenter": 2048, "WindowWidth": 1000, "VOILUTFunction": "SIGMOID"},
        lambda v: 255 / (1 + np.exp(-4 * (v - 2048) / 1000)),
    ),
    "VOI LUT": (
        {"VOILUTSequence": lookup_table(CURVE, bits=12)},
        lambda v: CURVE[v] / 4095 * 255,
    ),
    "VOI LUT before window": (
        {
            **{"VOILUTSequence": lookup_table(CURVE, bits=12)},
            **{"WindowCenter": 100, "WindowWidth": 10},
        },
        lambda v: CURVE[v] / 4095 * 255,
    ),
    "VOI LUT of another range": (
        {"VOILUTSequence": lookup_table(SHORT_CURVE, first=1000, bits=12)},
        lambda v: CURVE[min(max(v, 1000), 2999)] / 4095 * 255,
    ),
    "VOI LUT from a negative value": (
        {
            **{"RescaleSlope": 1, "RescaleIntercept": -1024},
            **{"VOILUTSequence": lookup_table(CURVE, first=-1024, bits=12)},
        },
        lambda v: CURVE[v] / 4095 * 255,
    ),
    "Modality LUT": (
        {"ModalityLUTSequence": lookup_table(CURVE * 4, bits=14)},
        lambda v: CURVE[v] * 4 / 16383 * 255,
    ),
    "Modality LUT and window": (
        {
            **{"ModalityLUTSequence": lookup_table(CURVE, bits=12)},
            **{"WindowCenter": 1000, "WindowWidth": 1500},
        },
        lambda v: linear(CURVE[v], 1000, 1500),
    ),
}


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("syntax", [*NATIVE[:2], uid.JPEGLosslessSV1])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_prepare_dicom_with_a_transform_gives_the_square_of_its_png(name, syntax, photometric):
    header, formula = TRANSFORMS[name]
    cells = cells_of(GREY, 12)
    levels = np.array([formula(value) for value in range(4096)])
    if photometric == "MONOCHROME1":
        levels = 255 - levels
    data = dicom_file(cells, syntax, BitsStored=12, PhotometricInterpretation=photometric, **header)
    assert_square_of(data, np.rint(levels).astype(np.uint8)[cells])


def test_decode_dicom_scales_by_the_range_of_the_bits_not_of_the_picture():
    dark = np.array([[100, 300], [200, 400]], np.uint16)
    assert grey_of(dicom_file(dark, BitsStored=12)).tolist() == [[6, 19], [12, 25]]


@pytest.mark.parametrize(
    "photometric, shape, inverted",
    [
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", False),
        ("MONOCHROME1", None, True),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "LIN OD", False),
    ],
)
def test_decode_dicom_is_inverted_once_and_the_shape_decides(photometric, shape, inverted):
    data = dicom_file(SMALL, PhotometricInterpretation=photometric, PresentationLUTShape=shape)
    assert np.array_equal(grey_of(data), 255 - SMALL if inverted else SMALL)


def test_decode_dicom_ignores_bits_that_are_not_stored():
    cells = cells_of(SMALL, 12)
    overlay = cells | (np.arange(SMALL.size).reshape(SMALL.shape) % 16 << 12).astype(np.uint16)
    assert np.array_equal(grey_of(dicom_file(overlay, BitsStored=12)), SMALL)
    shifted = cells << 4 | 5
    assert np.array_equal(grey_of(dicom_file(shifted, BitsStored=12, HighBit=15)), SMALL)


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize(
    "padding, limit, values, levels",
    [
        (0, None, [0, 1, 4095], [0, 0, 255]),
        (4095, 4000, [0, 3999, 4000, 4050, 4095], [0, 255, 0, 0, 0]),
        (4000, 4095, [0, 3999, 4000, 4050, 4095], [0, 255, 0, 0, 0]),
        (0xF000, None, [0, 0xF000, 4095], [0, 0, 255]),
    ],
)
def test_decode_dicom_padding_is_black_and_no_part_of_the_range(
    padding, limit, values, levels, photometric
):
    levels = np.array(levels)
    is_padding = levels == 0
    is_padding[0] = padding == 0
    if padding == 0:
        is_padding[:] = [True, False, False]
    if photometric == "MONOCHROME1":
        levels = np.where(is_padding, 0, 255 - levels)
    data = dicom_file(
        np.array([values], np.uint16),
        BitsStored=12,
        PhotometricInterpretation=photometric,
        PixelPaddingValue=padding,
        PixelPaddingRangeLimit=limit,
    )
    assert grey_of(data).tolist() == [levels.tolist()]


def test_decode_dicom_padding_of_signed_pixels_is_taken_for_signed():
    cells = np.array([[-2000, -1999, 32767]], np.int16)
    as_signed = dicom_file(cells, PixelPaddingValue=-2000)
    as_unsigned = as_signed.replace(b"\x28\x00\x20\x01SS", b"\x28\x00\x20\x01US")
    for data in (as_signed, as_unsigned):
        assert grey_of(data).tolist() == [[0, 120, 255]]


def test_decode_big_endian_bytes_in_words_are_swapped():
    odd = SMALL[8:11, 8:11]
    assert len(np.unique(odd)) > 4
    swapped = np.frombuffer(odd.tobytes() + b"\0", ">u2").astype("<u2").tobytes()
    data = dicom_file(odd, uid.ExplicitVRBigEndian, PixelData=swapped)
    data = data.replace(b"\x7f\xe0\0\x10OB", b"\x7f\xe0\0\x10OW")
    assert np.array_equal(grey_of(data), odd)
    unpadded = data[:-14] + struct.pack(">L", 9) + data[-10:-1]
    assert reject_of(unpadded).reason is Reason.TRUNCATED


# Colour

RGB = np.dstack([SMALL, SMALL[::-1], SMALL[:, ::-1]])
LUMA = np.asarray(Image.fromarray(RGB).convert("L")).astype(int)
YBR = np.asarray(Image.fromarray(RGB).convert("YCbCr"))


@pytest.mark.parametrize("syntax", [*NATIVE, *EXACT[1:3], uid.JPEG2000Lossless, uid.RLELossless])
def test_decode_dicom_rgb_gives_its_luma(syntax):
    assert np.array_equal(grey_of(dicom_file(RGB, syntax)), LUMA)
    assert np.array_equal(
        grey_of(dicom_file(YBR, syntax, PhotometricInterpretation="YBR_FULL")), YBR[..., 0]
    )


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEGLosslessSV1])
def test_decode_dicom_colour_of_jpeg_2000_elsewhere_is_refused(syntax):
    error = reject_of(dicom_file(RGB, syntax, PhotometricInterpretation="YBR_RCT"))
    assert str(error) == (
        "invalid_header: PhotometricInterpretation is none that this transfer syntax can have"
    )


def test_decode_dicom_rgb_by_plane_or_of_sixteen_bits_gives_its_luma():
    by_plane = np.moveaxis(RGB, 2, 0).tobytes()
    assert np.array_equal(grey_of(dicom_file(RGB, PlanarConfiguration=1, PixelData=by_plane)), LUMA)
    assert np.array_equal(grey_of(dicom_file(RGB.astype(np.uint16) * 257)), LUMA)


def test_decode_dicom_ybr_422_and_partial_give_the_luma_that_they_hold():
    pairs = np.concatenate([SMALL.reshape(-1, 2), np.full((SMALL.size // 2, 2), 128)], axis=1)
    pixels = pairs.astype(np.uint8).tobytes()
    full = {"PhotometricInterpretation": "YBR_FULL_422", "PixelData": pixels}
    assert np.array_equal(grey_of(dicom_file(RGB[:, : SMALL.shape[1]], **full)), SMALL)
    partial = full | {"PhotometricInterpretation": "YBR_PARTIAL_422"}
    expected = np.rint(np.clip((SMALL - 16.0) * 255 / 219, 0, 255))
    assert np.array_equal(grey_of(dicom_file(RGB, **partial)), expected)


def test_decode_dicom_palette_gives_the_luma_of_its_entries():
    entries = np.arange(200, dtype=np.uint16)
    colours = [entries * 300, entries * 100, 65535 - entries * 300]
    header = {}
    for name, channel in zip(("Red", "Green", "Blue"), colours, strict=True):
        header[f"{name}PaletteColorLookupTableDescriptor"] = [200, 20, 16]
        header[f"{name}PaletteColorLookupTableData"] = channel.astype("<u2").tobytes()
    rgb = np.dstack([(channel >> 8).astype(np.uint8) for channel in colours])
    luma = np.asarray(Image.fromarray(rgb).convert("L"))[0]
    data = dicom_file(SMALL, PhotometricInterpretation="PALETTE COLOR", **header)
    assert np.array_equal(grey_of(data), luma[np.clip(SMALL.astype(int) - 20, 0, 199)])


# Quality codes


def coded(value):
    """Returns the value of a sequence of one code."""
    code = pydicom.Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "SCT", CANARY
    return [code]


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize(
    "header, expected",
    [
        ({}, []),
        ({"ViewPosition": "PA"}, []),
        ({"ViewPosition": "LL"}, ["lateral"]),
        ({"ViewCodeSequence": coded("399067008")}, ["lateral"]),
        ({"ViewCodeSequence": coded("272479007")}, []),
        ({"ViewPosition": "", "ViewCodeSequence": coded("R-10236")}, ["lateral"]),
        ({"ViewPosition": "PA", "ViewCodeSequence": coded("399067008")}, []),
        ({"ViewCodeSequence": []}, []),
        ({"BurnedInAnnotation": "NO"}, []),
        ({"ViewPosition": "RLD", "BurnedInAnnotation": "YES"}, ["lateral", "burned_in_annotation"]),
    ],
)
def test_decode_dicom_header_gives_quality_codes(header, expected, syntax):
    found = decode_grey(dicom_file(SMALL, syntax, **header))
    assert [code.value for code in found.header_codes] == expected
    assert np.array_equal(np.asarray(found.image), SMALL)


def test_decode_dicom_side_views_are_the_lateral_ones_of_pydicoms_code_dictionary():
    names = [name for name in dir(codes.cid4010) if "Lateral" in name and "Oblique" not in name]
    views = [getattr(codes.cid4010, name) for name in names]
    current = {value for value in dicom._SIDE_VIEWS if value.isdigit()}
    assert {view.value for view in views} == current
    older = dicom._SIDE_VIEWS - current
    assert len(older) == len(views) and all(Code(value, "SRT", "") in views for value in older)


@pytest.mark.parametrize(
    "written, broken",
    [
        (
            b"\x18\0\x01\x51CS\2\0LL",
            b"\x18\0\x01\x51SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\xdd\xe0" + bytes(4),
        ),
        (b"\x18\0\x01\x51CS\2\0LL", b"\x54\0\x20\2SQ\0\0\6\0\0\0\xfe\xff\0\xe0\x28\0"),
    ],
    ids=["view_position_is_a_sequence", "code_sequence_is_cut"],
)
def test_decode_dicom_broken_view_gives_no_code_and_costs_no_image(written, broken):
    data = dicom_file(SMALL, ViewPosition="LL", BurnedInAnnotation="YES")
    assert data.count(written) == 1
    found = decode_grey(data.replace(written, broken))
    assert found.header_codes == ("burned_in_annotation",)
    assert np.array_equal(np.asarray(found.image), SMALL)


def test_decode_grey_of_a_file_without_a_header_gives_no_codes():
    assert decode_grey(png_file(SMALL)).header_codes == ()


# What is DICOM


def bare(data):
    """Returns the dataset alone, as files were written before there was a preamble."""
    stream = dicom_header.ReadStream(data)
    stream.seek(144)
    return data[144 + struct.unpack_from("<L", data, 140)[0] :]


@pytest.mark.parametrize("syntax", NATIVE[:2], ids=lambda syntax: syntax.keyword)
def test_decode_dicom_without_preamble_is_known_by_its_first_element(syntax):
    whole = dicom_file(SMALL, syntax)
    for data in (whole[132:], bare(whole)):
        assert is_dicom(data[:132])
        assert np.array_equal(grey_of(data), SMALL)


@pytest.mark.parametrize("data", [b"", b"\x08\x00", bytes(200), b"\x08\x00\x05\x00DICM" * 9])
def test_is_dicom_of_other_bytes_is_false(data):
    assert not is_dicom(data)


def test_decode_dicom_whose_header_is_in_the_other_vr_is_read():
    """Writers err in what they call the transfer syntax."""
    explicit, implicit = (dicom_file(SMALL, syntax) for syntax in NATIVE[:2])
    for one, other in ((explicit, implicit), (implicit, explicit)):
        mixed = one[: len(one) - len(bare(one))] + bare(other)
        assert np.array_equal(grey_of(mixed), SMALL)


def test_decode_dicom_without_the_extra_names_the_remedy():
    code = (
        "import sys; sys.modules.update(pydicom=None, imagecodecs=None)\n"
        "from model.preprocessing import prepare\n"
        "try: prepare(bytes(128) + b'DICM')\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = "decoder_missing: DICOM; to read it: pip install 'prescreen[dicom]'\n"
    assert done.stdout == expected


# Rejects


def without_pixels(class_uid, **attributes):
    data = dicom_file(SMALL, SOPClassUID=class_uid, **attributes)
    return data[: data.index(b"\xe0\x7f\x10\x00OB")]


def item(data):
    return b"\xfe\xff\x00\xe0" + struct.pack("<L", len(data)) + data


def eight_bit(data):
    """Returns a file whose header says that its cells are of 8 bits."""
    for element, value in ((0x100, 8), (0x101, 8), (0x102, 7)):
        at = data.index(struct.pack("<2H2sH", 0x28, element, b"US", 2)) + 8
        data = data[:at] + struct.pack("<H", value) + data[at + 2 :]
    return data


LOSSLESS = dicom_file(SMALL, uid.JPEGLosslessSV1)
J2K = dicom_file(SMALL, uid.JPEG2000Lossless)
RLE = dicom_file(SMALL, uid.RLELossless)
REJECTS = {
    "prefix alone": (bytes(128) + b"DICM", "no_pixel_data: a DICOM file without pixels"),
    "structured report": (
        without_pixels(uid.BasicTextSRStorage),
        "not_an_image: a DICOM object of the class BasicTextSRStorage",
    ),
    "presentation state": (
        without_pixels(uid.GrayscaleSoftcopyPresentationStateStorage),
        "not_an_image: a DICOM object of the class GrayscaleSoftcopyPresentationStateStorage",
    ),
    "key objects": (
        without_pixels(uid.KeyObjectSelectionDocumentStorage),
        "not_an_image: a DICOM object of the class KeyObjectSelectionDocumentStorage",
    ),
    "PDF": (
        without_pixels(uid.EncapsulatedPDFStorage, EncapsulatedDocument=b"%PDF" * 9),
        "not_an_image: a DICOM object of the class EncapsulatedPDFStorage",
    ),
    "image without pixels": (
        without_pixels(uid.DigitalXRayImageStorageForPresentation),
        "no_pixel_data: a DICOM file without pixels",
    ),
    "class not known": (without_pixels("1.2.3"), "no_pixel_data: a DICOM file without pixels"),
    "empty pixels": (
        dicom_file(SMALL, PixelData=b""),
        "no_pixel_data: a DICOM file without pixels",
    ),
    "two frames": (
        dicom_file(SMALL, NumberOfFrames=2, PixelData=SMALL.tobytes() * 2),
        "multi_frame: a DICOM object of more than one frame",
    ),
    "no frames": (dicom_file(SMALL, NumberOfFrames=0), "invalid_header: NumberOfFrames is under 1"),
    "enhanced object": (
        dicom_file(SMALL, NumberOfFrames=1, SharedFunctionalGroupsSequence=lookup_table(CURVE)),
        "unsupported_format: an enhanced multi-frame object",
    ),
    "transfer syntax not read": (
        LOSSLESS.replace(b"1.2.840.10008.1.2.4.70", b"1.2.840.10008.1.2.4.94"),
        "unsupported_transfer_syntax: JPIP Referenced",
    ),
    "private transfer syntax": (
        LOSSLESS.replace(b"1.2.840.10008.1.2.4.70", b"1.2.999.10008.1.2.4.70"),
        "unsupported_transfer_syntax: a transfer syntax not known",
    ),
    "no rows": (dicom_file(SMALL, Rows=None), "invalid_header: Rows is missing"),
    "rows of zero": (dicom_file(SMALL, Rows=0), "zero_dimension: 24x0 pixels"),
    "too many rows": (
        dicom_file(SMALL, Rows=65535, Columns=65535),
        "too_many_pixels: 65535x65535 pixels; the limits are 64000000 in all and 65535 on a side",
    ),
    "one bit": (
        dicom_file(SMALL, BitsAllocated=1, BitsStored=1),
        "unsupported_format: DICOM of 1 bits a sample; 8 and 16 are read",
    ),
    "thirty-two bits": (
        dicom_file(SMALL, BitsAllocated=32, BitsStored=32),
        "unsupported_format: DICOM of 32 bits a sample; 8 and 16 are read",
    ),
    "floating point": (
        dicom_file(SMALL).replace(b"\xe0\x7f\x10\x00OB", b"\xe0\x7f\x08\x00OF"),
        "unsupported_format: DICOM of floating-point pixels",
    ),
    "more bits stored than allocated": (
        dicom_file(SMALL, BitsStored=12),
        "invalid_header: BitsAllocated, BitsStored and HighBit contradict one another",
    ),
    "representation of 2": (
        dicom_file(SMALL, PixelRepresentation=2),
        "invalid_header: PixelRepresentation is none that these pixels can have",
    ),
    "three samples of grey": (
        dicom_file(SMALL, SamplesPerPixel=3),
        "invalid_header: SamplesPerPixel contradicts PhotometricInterpretation",
    ),
    "CMYK": (
        dicom_file(SMALL, PhotometricInterpretation="CMYK"),
        "unsupported_format: DICOM of another photometric interpretation",
    ),
    "window without width": (
        dicom_file(SMALL, WindowCenter=5),
        "invalid_header: WindowCenter and WindowWidth must both be given",
    ),
    "window of width 0": (
        dicom_file(SMALL, WindowCenter=5, WindowWidth=0),
        "invalid_header: WindowWidth is too small",
    ),
    "exact window of width 0": (
        dicom_file(SMALL, WindowCenter=5, WindowWidth=0, VOILUTFunction="LINEAR_EXACT"),
        "invalid_header: WindowWidth is too small",
    ),
    "window of a text": (
        dicom_file(SMALL, WindowCenter=5, WindowWidth=77).replace(b"77", b"xy"),
        "invalid_header: WindowWidth is no number",
    ),
    "window of NaN": (
        dicom_file(SMALL, WindowCenter=5, WindowWidth=7777).replace(b"7777.0", b"   nan"),
        "invalid_header: WindowWidth is not finite",
    ),
    "function not known": (
        dicom_file(SMALL, WindowCenter=5, WindowWidth=9, VOILUTFunction="CUBIC"),
        "invalid_header: VOILUTFunction is none of the standard",
    ),
    "slope alone": (
        dicom_file(SMALL, RescaleSlope=2),
        "invalid_header: RescaleSlope and RescaleIntercept must both be given, the slope not as 0",
    ),
    "slope without end": (
        dicom_file(SMALL, RescaleSlope="1e307", RescaleIntercept="-1e308"),
        "invalid_header: the transforms of the pixels' values are out of all range",
    ),
    "padding alone": (
        dicom_file(SMALL, PixelPaddingValue=0, PixelPaddingRangeLimit=255),
        "invalid_header: PixelPaddingValue leaves no other value",
    ),
    "table too short": (
        dicom_file(SMALL, VOILUTSequence=lookup_table(CURVE[:-1])).replace(
            struct.pack("<4H", 6, 4095, 0, 16), struct.pack("<4H", 6, 4096, 0, 16)
        ),
        "invalid_header: LUTData has not as many entries as described",
    ),
    "table of more bits": (
        dicom_file(SMALL, VOILUTSequence=lookup_table(CURVE, bits=11)),
        "invalid_header: LUTDescriptor and LUTData contradict each other",
    ),
    "fewer pixels": (
        dicom_file(SMALL, PixelData=SMALL.tobytes()[:-2]),
        "corrupt: fewer pixels than rows and columns say",
    ),
    "cut within the pixels": (
        dicom_file(SMALL)[:-2],
        "truncated: the DICOM file ends within its pixels",
    ),
    "cut within the header": (
        dicom_file(SMALL)[:400],
        "truncated: the DICOM file ends within its header",
    ),
    "cut within the deflated": (
        dicom_file(SMALL, uid.DeflatedExplicitVRLittleEndian)[:-20],
        "truncated: the DICOM file ends within its header",
    ),
    "cut within the fragments": (
        LOSSLESS[:-30],
        "truncated: the DICOM file ends within its pixels",
    ),
    "lossless JPEG without its end": (
        LOSSLESS.replace(b"\xff\xd9", b"\x00\x00"),
        "truncated: the JPEG ends before its end marker",
    ),
    "JPEG 2000 without its end": (
        J2K.replace(b"\xff\xd9", b"\x00\x00"),
        "truncated: the picture data ends before its end marker",
    ),
    "JPEG of another size": (
        dicom_file(SMALL[:, 1:], uid.JPEGLosslessSV1, Columns=SMALL.shape[1]),
        "corrupt: the picture data is of another size than the header says",
    ),
    "JPEG 2000 of another size": (
        dicom_file(SMALL[:, 1:], uid.JPEG2000Lossless, Columns=SMALL.shape[1]),
        "corrupt: the picture data is of another size than the header says",
    ),
    "JPEG-LS of another size": (
        dicom_file(SMALL[:, 1:], uid.JPEGLSLossless, Columns=SMALL.shape[1]),
        "corrupt: the picture data is of another size than the header says",
    ),
    "RLE of another size": (
        dicom_file(SMALL[1:], uid.RLELossless, Rows=SMALL.shape[0]),
        "corrupt: the picture data is of another size than the header says",
    ),
    "RLE that is none": (
        RLE[:-200] + bytes(180) + RLE[-20:],
        "corrupt: the picture data does not decode",
    ),
    "JPEG 2000 that is JPEG": (
        LOSSLESS.replace(b"1.2.840.10008.1.2.4.70", b"1.2.840.10008.1.2.4.90"),
        "corrupt: picture data without its frame header",
    ),
    "JPEG of more bits": (
        eight_bit(dicom_file(cells_of(SMALL, 12), uid.JPEGLosslessSV1, BitsStored=12)),
        "corrupt: the picture data has more bits than the header says",
    ),
    "fragments that are none": (
        LOSSLESS.replace(item(bytes(4)), item(b"")[:4] + b"\xff" * 4),
        "corrupt: fragments of pixels that do not follow one another",
    ),
}


@pytest.mark.parametrize("data, expected", REJECTS.values(), ids=REJECTS.keys())
def test_decode_dicom_that_is_bad_says_what_is_wrong(data, expected):
    assert str(reject_of(data)) == expected


def test_decode_dicom_of_a_bomb_is_refused_before_it_takes_memory(monkeypatch):
    def forbidden(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(dicom_pixels, "decode_codestream", forbidden)
    huge = dicom_file(SMALL, uid.JPEG2000Lossless, Rows=8001, Columns=8000)
    assert reject_of(huge).reason is Reason.TOO_MANY_PIXELS
    monkeypatch.undo()

    header = dicom_file(SMALL, uid.DeflatedExplicitVRLittleEndian)
    header = header[: 144 + struct.unpack_from("<L", header, 140)[0]]
    monkeypatch.setattr(dicom_header, "_MAX_INFLATED_BYTES", 1 << 20)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = deflater.compress(b"\x09\x00\x01\x00UN\0\0" + bytes(8 << 20)) + deflater.flush()
    assert str(reject_of(header + bomb)) == (
        "unsupported_format: a deflated dataset of more than 1048576 bytes"
    )


@pytest.mark.parametrize(
    "element",
    [b"\x09\x00\x01\x00UN" + bytes(6), b"\x09\x00\x01\x00SQ\0\0" + b"\xff" * 4 + item(b"") * 9],
    ids=["elements", "items"],
)
def test_decode_dicom_of_elements_without_end_is_refused(element, monkeypatch):
    monkeypatch.setattr(dicom_header, "_MAX_READS", 1000)
    data = bytes(128) + b"DICM" + element + element[12:] * 400 + element * 1000
    assert str(reject_of(data)) == "corrupt: a header of too many elements"


PYDICOM_FILES = {
    **dict.fromkeys(
        (
            *("693_J2KI", "CT_small", "ExplVR_BigEnd", "GDCMJ2K_TextGBR", "J2K_pixelrep_mismatch"),
            *("JPEG-lossy", "JPEG2000", "JPEGLSNearLossless_08", "JPEGLSNearLossless_16"),
            *("JPGExtended", "MR_small", "MR_small_RLE", "MR_small_bigendian", "MR_small_expb"),
            *("MR_small_implicit", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless"),
            *("MR_small_padded", "SC_jpeg_no_color_transform", "SC_jpeg_no_color_transform_2"),
            *(
                f"SC_rgb_dcmtk_+eb+c{kind}"
                for kind in ("r", "y+n1", "y+n2", "y+np", "y+s2", "y+s4")
            ),
            *("SC_rgb_gdcm_KY", "SC_rgb_jls_lossy_line", "SC_rgb_jls_lossy_sample"),
            *("SC_rgb_jpeg", "SC_rgb_jpeg_app14_dcmd", "SC_rgb_jpeg_dcmd", "SC_rgb_jpeg_dcmtk"),
            *("SC_rgb_jpeg_gdcm", "SC_rgb_jpeg_lossy_gdcm", "SC_rgb_rle", "SC_rgb_rle_16bit"),
            *("SC_rgb_small_odd", "SC_rgb_small_odd_big_endian", "SC_rgb_small_odd_jpeg"),
            *("SC_ybr_full_422_uncompressed", "examples_jpeg2k", "examples_overlay"),
            *("examples_palette", "examples_rgb_color", "image_dfl"),
        ),
        "read",
    ),
    **dict.fromkeys(
        (
            *("ExplVR_BigEndNoMeta", "ExplVR_LitEndNoMeta", "no_meta", "reportsi", "rtplan"),
            *("reportsi_with_empty_number_tags", "rtstruct", "test-SR", "waveform_ecg"),
        ),
        "not_an_image",
    ),
    **dict.fromkeys(
        ("SC_rgb_rle_16bit_2frame", "SC_rgb_rle_2frame", "SC_rgb_rle_32bit_2frame"), "multi_frame"
    ),
    **dict.fromkeys(("examples_ybr_color", "rtdose", "rtdose_expb", "rtdose_rle"), "multi_frame"),
    **dict.fromkeys(
        (
            *("SC_rgb_rle_32bit", "liver_1frame", "liver_expb_1frame", "rtdose_1frame"),
            *("rtdose_expb_1frame", "rtdose_rle_1frame"),
        ),
        "unsupported_format",
    ),
    **dict.fromkeys(
        ("UN_sequence", "empty_charset_LEI", "no_meta_group_length", "priv_SQ"), "no_pixel_data"
    ),
    **dict.fromkeys(("badVR", "meta_missing_tsyntax", "nested_priv_SQ"), "invalid_header"),
    **dict.fromkeys(("MR_truncated", "rtplan_truncated"), "truncated"),
    # Four bytes of its codestream are overwritten.
    "JPEG2000-embedded-sequence-delimiter": "corrupt",
}


@pytest.fixture
def any_modality(monkeypatch):
    """Lets the decoder decode what is no radiograph."""
    monkeypatch.setattr(dicom, "RADIOGRAPHS", ("CR", "CT", "MR", "NM", "OT", "RG", "US"))


@pytest.mark.parametrize("modality", ["CT", "MR", "US", "MG", "OT", "XYZ"])
def test_decode_dicom_of_another_modality_is_rejected(modality):
    error = reject_of(dicom_file(SMALL, Modality=modality))
    assert error.reason is Reason.OTHER_MODALITY
    assert error.detail == "a DICOM image of another modality than CR, DX, RG"


@pytest.mark.filterwarnings("ignore::UserWarning")  # what writes the file wants capitals
@pytest.mark.parametrize("modality", ["CR", "DX", "RG", "dx", "", None])
def test_decode_dicom_of_a_radiographs_modality_or_none_is_read(modality):
    assert np.array_equal(grey_of(dicom_file(SMALL, Modality=modality)), SMALL)


def test_decode_files_of_pydicom_reads_each_or_gives_its_reason(any_modality):
    outcomes = {}
    for path in TEST_FILES.glob("*.dcm"):
        try:
            decode_grey(path.read_bytes())
            outcomes[path.stem] = "read"
        except ImageError as error:
            outcomes[path.stem] = str(error.reason)
    assert outcomes == PYDICOM_FILES


@pytest.mark.parametrize(
    "name",
    ["MR_small_RLE", "MR_small_bigendian", "MR_small_expb", "MR_small_implicit", "MR_small_padded"]
    + ["MR_small_jp2klossless", "MR_small_jpeg_ls_lossless"],
)
def test_decode_one_image_of_pydicom_in_seven_syntaxes_gives_the_same(name, any_modality):
    one, other = (grey_of((TEST_FILES / f"{each}.dcm").read_bytes()) for each in ("MR_small", name))
    assert np.array_equal(one, other)


def test_decode_colour_bars_of_pydicom_gives_the_luma_whatever_holds_them(any_modality):
    expected = grey_of((TEST_FILES / "SC_rgb_rle.dcm").read_bytes())
    for path in TEST_FILES.glob("SC_rgb_*.dcm"):
        if PYDICOM_FILES[path.stem] != "read":
            continue
        grey = grey_of(path.read_bytes())
        if grey.shape == expected.shape:  # the others are other pictures
            difference = np.abs(grey - expected)
            assert np.median(difference) <= 1, path.stem
            assert difference.mean() < 2, path.stem


def test_decode_twelve_bit_jpeg_of_pydicom_keeps_its_twelve_bits(any_modality):
    values = grey_of((TEST_FILES / "JPGExtended.dcm").read_bytes())
    assert values.shape == (1024, 256)
    assert values.max() == round(264 / 4095 * 255)


def test_decode_real_radiographs_as_dicom(nih_images):
    folder = nih_images[0].parents[1] / "dicom"
    if not folder.exists():
        pytest.skip("needs real data: no shared/data/dicom beside the checkout")
    for path in folder.iterdir():
        header = pydicom.dcmread(path)
        levels = np.asarray(Image.open(pydicom.filebase.BytesIO(_first_frame(header))))
        inverted = header.PhotometricInterpretation == "MONOCHROME1"
        difference = grey_of(path.read_bytes()) - (255 - levels if inverted else levels).astype(int)
        assert np.abs(difference).max() <= 1
        assert prepare(path.read_bytes()).width == 1024


def _first_frame(header):
    return next(pydicom.encaps.generate_frames(header.PixelData, number_of_frames=1))


# Damage

FILES = {
    syntax.keyword: dicom_file(
        cells_of(SMALL, 12),
        syntax,
        BitsStored=12,
        VOILUTSequence=lookup_table(CURVE, bits=12, order="<>"[syntax == uid.ExplicitVRBigEndian]),
    )
    for syntax in (*NATIVE, *EXACT, *LOSSY, uid.JPEGExtended12Bit)
} | {
    "JPEGBaseline8Bit": dicom_file(SMALL, uid.JPEGBaseline8Bit),
    "RGB": dicom_file(RGB, uid.JPEGLSLossless),
}


@pytest.mark.parametrize("name", FILES)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_decode_dicom_cut_anywhere_is_rejected(name, data):
    end = data.draw(st.integers(140, len(FILES[name]) - 9))  # the delimiter of the fragments
    assert reject_of(FILES[name][:end]).reason in (Reason.TRUNCATED, Reason.NO_PIXEL_DATA)


@quick
@given(data=st.data(), name=st.sampled_from(list(FILES)))
def test_prepare_dicom_with_a_byte_changed_gives_a_square_or_a_reason(data, name):
    changed = bytearray(FILES[name])
    changed[data.draw(st.integers(128, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert prepare(bytes(changed)).pixels.shape == (224, 224)
    except ImageError as error:
        assert CANARY not in str(error)


@quick
@given(rest=st.binary(max_size=300))
def test_prepare_of_any_bytes_after_the_prefix_gives_a_reason(rest):
    assert isinstance(reject_of(bytes(128) + b"DICM" + rest), ImageError)


# Quiet, and beside others


def test_decode_dicom_says_nothing_and_leaves_pydicoms_logger_to_others(caplog):
    character_set = b"\x08\x00\x05\x00CS\x0e\x00" + CANARY.encode()
    nested = b"\x09\x00\x01\x00SQ\0\0" + b"\xff" * 4 + item(character_set)
    first = b"\x08\x00\x16\x00UI"
    broken = dicom_file(SMALL).replace(first, character_set + first)
    ended = nested + b"\xfe\xff\xdd\xe0" + bytes(4)
    broken = broken.replace(b"\x10\x00\x10\x00", ended + b"\x10\x00\x10\x00")
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("ignore", module=r"pydicom\b")
        assert np.array_equal(grey_of(broken), SMALL)
        logging.getLogger("pydicom").warning("of another")
    assert caplog.messages == ["of another"]
    assert caught == []


def test_decode_dicom_in_threads_equals_decoding_in_turn():
    files = [*FILES.values()] * 3
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = [grey.tobytes() for grey in pool.map(grey_of, files)]
    assert together == [grey_of(data).tobytes() for data in files]


def test_draw_overlay_of_a_dicom_shows_its_grey():
    grey = decode_grey(dicom_file(cells_of(GREY, 12, signed=True), BitsStored=12)).image
    caption = {"finding": "Mass", "score": 0.5, "threshold": 0.4, "note": "A note."}
    grid = np.eye(7, dtype=np.float32)
    expected = draw_overlay(Image.fromarray(GREY), grid, **caption)
    assert draw_overlay(grey, grid, **caption).tobytes() == expected.tobytes()


def test_dicom_limit_is_that_of_other_images(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", SMALL.size)
    assert decode_grey(dicom_file(SMALL)).width == SMALL.shape[1]
    monkeypatch.setattr(decoding, "MAX_PIXELS", SMALL.size - 1)
    assert reject_of(dicom_file(SMALL)).reason is Reason.TOO_MANY_PIXELS


def test_decode_dicom_of_a_uid_that_is_none_warns_of_nothing():
    names = (b"1.2.840.10008.1.2.4.70", b"1.2.840'10008.1.2.4.70")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert str(reject_of(LOSSLESS.replace(*names))) == (
            "unsupported_transfer_syntax: a transfer syntax not known"
        )


def test_decode_dicom_called_rgb_whose_jpeg_says_ybr_gives_its_luma():
    jpeg = image_file(Image.fromarray(RGB), "JPEG", quality=98, subsampling=0)
    assert jpeg[6:10] == b"JFIF"
    data = dicom_file(RGB, uid.JPEGBaseline8Bit, PixelData=pydicom.encaps.encapsulate([jpeg]))
    assert np.abs(grey_of(data) - LUMA).max() <= 4
