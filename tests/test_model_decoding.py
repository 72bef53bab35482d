"""Decoding and preprocessing: every file gives its square or one reason, and nothing else."""

import concurrent.futures
import dataclasses
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

from model import decoding
from model.decoding import decode_grey
from model.preprocessing import prepare, to_square
from schemas.rejects import ImageError, Reason, Stage
from scripts.png_files import (
    GREY,
    GREY_ALPHA,
    PALETTE,
    PNG_MAGIC,
    RGB,
    RGBA,
    png_chunk,
    png_file,
    png_header,
    png_rows,
)
from tests.bad_files import (
    exif_block,
    grey_picture,
    image_file,
    with_frame,
    write_bad_files,
    write_odd_files,
)

PICTURE = grey_picture()
PNG = png_file(PICTURE)
JPEG = image_file(Image.fromarray(PICTURE), "JPEG")
SMALL = grey_picture(height=11, width=13)
SMALL_IMAGE = Image.fromarray(SMALL)
SMALL_FILES = {
    "grey PNG": png_file(SMALL),
    "interlaced PNG": png_file(SMALL, interlaced=True),
    "PNG by Pillow": image_file(SMALL_IMAGE.convert("RGBA"), "PNG"),
    "palette PNG": image_file(SMALL_IMAGE.convert("P"), "PNG"),
    "baseline JPEG": image_file(SMALL_IMAGE, "JPEG"),
    "progressive JPEG": image_file(SMALL_IMAGE.convert("RGB"), "JPEG", progressive=True),
    "CMYK JPEG": image_file(SMALL_IMAGE.convert("CMYK"), "JPEG", restart_marker_blocks=1),
    "turned JPEG": image_file(SMALL_IMAGE, "JPEG", exif=exif_block(6)),
}
READABLE = "PNG, 8-bit Huffman-coded JPEG and DICOM are read"
LIMITS = "the limits are 64000000 in all and 65535 on a side"
DAMAGED = "the picture data does not decode"
quick = settings(deadline=None, max_examples=150)


def square_of(grey: np.ndarray) -> np.ndarray:
    """What Pillow makes of uint8 `(height, width)`, without any of the code tested."""
    return np.array(Image.fromarray(grey).resize((224, 224), Image.Resampling.BILINEAR))


def levels_of(data: bytes) -> np.ndarray:
    return np.asarray(decode_grey(data).image)


def reject_of(data: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_grey(data)
    return caught.value


def assert_square_or_reject(data: bytes) -> None:
    try:
        pixels = prepare(data).pixels
    except ImageError as error:
        assert error.reason.stage is Stage.DECODE
    else:
        assert (pixels.shape, pixels.dtype) == ((224, 224), np.uint8)


def without_chunk_errors(data: bytes) -> bytes:
    """Returns the PNG with the checksums of its chunks put right, so that damage gets through."""
    mended, position = bytearray(data), len(PNG_MAGIC)
    while position + 12 <= len(mended):
        end = position + 8 + int.from_bytes(mended[position : position + 4])
        if end + 4 > len(mended):
            break
        mended[end : end + 4] = struct.pack(">I", zlib.crc32(mended[position + 4 : end]))
        position = end + 4
    return bytes(mended)


# To the square.


def test_prepare_plain_grey_png_gives_its_square_and_its_size():
    image = prepare(PNG)

    assert np.array_equal(image.pixels, square_of(PICTURE))
    assert (image.pixels.dtype, image.pixels.flags.c_contiguous) == (np.uint8, True)
    assert (image.width, image.height) == (96, 72)


def test_prepared_image_assigned_to_is_refused():
    with pytest.raises(dataclasses.FrozenInstanceError):
        prepare(PNG).width = 1


def test_to_square_of_a_checkerboard_averages_instead_of_sampling():
    board = np.indices((896, 896)).sum(axis=0).astype(np.uint8) % 2 * 255

    square = to_square(Image.fromarray(board))

    assert set(np.unique(square)) <= {127, 128}


@quick
@given(
    width=st.integers(1, 600), height=st.integers(1, 600), level=st.sampled_from((0, 1, 128, 255))
)
def test_to_square_of_one_level_keeps_it_at_any_size(width, height, level):
    square = to_square(Image.new("L", (width, height), level))

    assert np.array_equal(square, np.full((224, 224), level, np.uint8))
    assert square.flags.c_contiguous


# Pillow resizes modes 1 and P by sampling, whatever filter is asked for.
@pytest.mark.parametrize("mode", ["1", "P", "RGB", "I;16"])
def test_to_square_of_a_picture_that_is_not_grey_is_refused(mode):
    with pytest.raises(ValueError) as caught:
        to_square(Image.new(mode, (4, 4)))

    assert str(caught.value) == f"grey must be of mode L. Received: grey.mode={mode}."


# Pictures that decode.


def test_decode_plain_grey_png_returns_the_opened_image_uncopied():
    image = decode_grey(PNG).image

    assert type(image) is PngImageFile
    assert np.array_equal(np.asarray(image), PICTURE)


@pytest.mark.parametrize(
    "name",
    [
        "grey.png", "rgb.png", "rgba.png", "grey_alpha.png", "palette.png", "one_bit.png",
        "sixteen_bit.png", "sixteen_bit_rgb.png", "sixteen_bit_alpha.png", "interlaced.png",
        "turned.png", "png_named.jpeg", "grey.jpg", "progressive.jpg", "rgb.jpg", "cmyk.jpg",
        "turned.jpg", "several.jpg",
    ],
)  # fmt: skip
def test_prepare_odd_file_gives_the_picture_it_holds(name, tmp_path):
    odd = write_odd_files(tmp_path)[name]
    data = (tmp_path / name).read_bytes()

    levels = levels_of(data)
    image = prepare(data)

    assert levels.shape == odd.grey.shape
    assert np.abs(levels.astype(int) - odd.grey).max() <= odd.tolerance
    assert np.array_equal(image.pixels, square_of(levels))
    assert (image.height, image.width) == odd.grey.shape


@pytest.mark.parametrize(
    ("size", "reduced"),
    [
        ((1792, 2000), (896, 1000)),
        ((1790, 2000), (1790, 2000)),  # a side would fall below 896
        ((1801, 2000), (1801, 2000)),  # the last column would stand for half a pixel
        ((2500, 3000), (1250, 1500)),  # a quarter would be 625 wide
        ((3584, 4000), (896, 1000)),
        ((7168, 8000), (896, 1000)),
    ],
)
def test_decode_grey_large_jpeg_is_reduced_by_a_whole_factor_where_allowed(size, reduced):
    data = image_file(Image.new("L", size, 90), "JPEG")

    assert decode_grey(data).image.size == size
    decoded = decode_grey(data, at_least=896)

    assert decoded.image.size == reduced
    assert (decoded.width, decoded.height) == size
    assert decoded.image.getextrema() == (90, 90)


def test_prepare_large_turned_jpeg_has_its_full_size_in_display_orientation():
    picture = Image.new("L", (1792, 3584))
    picture.paste(200, (0, 0, 1792, 1792))
    image = prepare(image_file(picture, "JPEG", exif=exif_block(6)))

    assert (image.width, image.height) == (3584, 1792)
    assert image.pixels[:, :111].max() == 0  # turned clockwise: what was above is right
    assert image.pixels[:, 113:].min() == 200


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_prepare_large_jpeg_differs_from_a_full_decode_by_three_levels_at_most(nih_images, mode):
    for path in nih_images[::40]:
        xray = Image.open(path).convert(mode).resize((2000, 1800), Image.Resampling.BICUBIC)
        data = image_file(xray, "JPEG", quality=75)

        difference = np.abs(prepare(data).pixels.astype(int) - square_of(levels_of(data)))

        assert difference.max() <= 3
        assert difference.mean() < 0.15


def test_odd_files_written_are_all_tested(tmp_path):
    marks = test_prepare_odd_file_gives_the_picture_it_holds.pytestmark

    assert set(marks[0].args[1]) == set(write_odd_files(tmp_path))


@pytest.mark.parametrize("interlaced", [False, True], ids=["plain", "interlaced"])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_decode_grey_png_of_any_depth_spreads_every_level_over_a_byte(depth, interlaced):
    levels = np.arange(2**depth).reshape(2 ** (depth // 2), -1)

    decoded = levels_of(png_file(levels, depth, GREY, interlaced))

    assert np.array_equal(decoded, np.rint(levels * 255 / (2**depth - 1)))


@quick
@given(first=st.integers(0, 65535), last=st.integers(0, 65535), width=st.integers(1, 300))
def test_decode_sixteen_bit_ramp_rounds_each_level_to_nearest(first, last, width):
    ramp = np.linspace(first, last, width).astype(np.uint16).reshape(1, -1)

    assert np.array_equal(levels_of(png_file(ramp, depth=16)), np.rint(ramp / 257))


@pytest.mark.parametrize("colour", [GREY, RGB, GREY_ALPHA, RGBA, PALETTE])
@pytest.mark.parametrize("height", [1, 5, 8])
@pytest.mark.parametrize("width", [1, 3, 8, 9])
@pytest.mark.parametrize("interlaced", [False, True], ids=["plain", "interlaced"])
def test_decode_png_of_any_small_size_gives_every_pixel(interlaced, width, height, colour):
    grey = np.random.default_rng(width * height).integers(0, 256, (height, width))
    # Colour channels alike, alpha the reverse.
    samples = {
        RGB: np.dstack([grey] * 3),
        GREY_ALPHA: np.dstack([grey, 255 - grey]),
        RGBA: np.dstack([grey, grey, grey, 255 - grey]),
    }.get(colour, grey)
    palette = [png_chunk(b"PLTE", bytes(np.repeat(np.arange(256, dtype=np.uint8), 3)))]

    data = png_file(samples, 8, colour, interlaced, palette if colour == PALETTE else ())

    assert np.array_equal(levels_of(data), grey)


@pytest.mark.parametrize(
    "colour, samples, transparent",
    [
        (GREY, PICTURE, struct.pack(">H", int(PICTURE[0, 0]))),
        (RGB, np.dstack([PICTURE] * 3), struct.pack(">HHH", *[int(PICTURE[0, 0])] * 3)),
        (PALETTE, PICTURE, bytes(range(256))),
    ],
    ids=["grey", "RGB", "palette"],
)
def test_decode_png_with_a_transparent_colour_ignores_it(colour, samples, transparent):
    palette = png_chunk(b"PLTE", bytes(np.repeat(np.arange(256, dtype=np.uint8), 3)))
    chunks = [palette] * (colour == PALETTE) + [png_chunk(b"tRNS", transparent)]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        levels = levels_of(png_file(samples, colour=colour, before_pixels=chunks))

    assert np.array_equal(levels, PICTURE)


@pytest.mark.parametrize(
    "rgb, luma",
    [((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29), ((10, 200, 90), 131)],
    ids=["red", "green", "blue", "mixed"],
)
@pytest.mark.parametrize("colour", [RGB, PALETTE], ids=["RGB", "palette"])
def test_decode_colour_png_gives_its_luma(colour, rgb, luma):
    if colour == RGB:
        data = png_file(np.full((2, 2, 3), rgb), colour=RGB)
    else:
        data = png_file(
            np.zeros((2, 2), int), colour=PALETTE, before_pixels=[png_chunk(b"PLTE", bytes(rgb))]
        )

    assert levels_of(data).tolist() == [[luma, luma], [luma, luma]]


def test_decode_three_rgba_radiographs_gives_the_square_of_their_grey_channel(nih_images):
    colour_type = len(PNG_MAGIC) + 8 + 9
    contents = [path.read_bytes() for path in nih_images]
    rgba = [data for data in contents if data[colour_type] == RGBA]

    assert len(rgba) == 3
    for data in rgba:
        red = np.asarray(Image.open(io.BytesIO(data)))[:, :, 0]
        assert np.array_equal(prepare(data).pixels, square_of(red))


# Orientation and the rest of what is written around a picture.


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_oriented_file_is_turned_as_exif_says(orientation, image_format):
    data = image_file(Image.fromarray(PICTURE), image_format, exif=exif_block(orientation))

    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))

    assert np.array_equal(levels_of(data), np.asarray(upright))
    assert (prepare(data).width, prepare(data).height) == upright.size


@pytest.mark.parametrize("order", ["<", ">"], ids=["little endian", "big endian"])
def test_decode_exif_in_either_byte_order_is_turned(order):
    magic = b"II*\x00" if order == "<" else b"MM\x00*"
    block = magic + struct.pack(f"{order}IHHHIHH", 8, 1, 0x0112, 3, 1, 3, 0)

    data = png_file(PICTURE, before_pixels=[png_chunk(b"eXIf", block)])

    assert np.array_equal(levels_of(data), PICTURE[::-1, ::-1])


BROKEN_EXIF = {
    "empty": b"",
    "not TIFF": b"no EXIF at all",
    "cut within the header": exif_block(3)[:9],
    "cut before the entry": exif_block(3)[6:16],
    "directory outside": b"MM\x00*" + struct.pack(">I", 2**32 - 1),
    "endless directory": b"MM\x00*" + struct.pack(">IH", 8, 65535),
    "no such turn": exif_block(9),
    "orientation as text": b"MM\x00*" + struct.pack(">IHHHIHH", 8, 1, 0x0112, 2, 1, 3, 0),
}


@pytest.mark.parametrize("block", BROKEN_EXIF.values(), ids=BROKEN_EXIF.keys())
def test_decode_file_with_broken_exif_is_upright_without_a_warning(block):
    png = png_file(PICTURE, before_pixels=[png_chunk(b"eXIf", block)])
    body = b"Exif\x00\x00" + block.removeprefix(b"Exif\x00\x00")
    jpeg = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + JPEG[2:]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(levels_of(png), PICTURE)
        assert np.array_equal(levels_of(jpeg), levels_of(JPEG))


@quick
@given(block=st.binary(max_size=60))
def test_decode_file_with_any_exif_keeps_the_image(block):
    tiff = b"MM\x00*\x00\x00\x00\x08" + block

    image = decode_grey(png_file(SMALL, before_pixels=[png_chunk(b"eXIf", tiff)])).image

    assert sorted(image.size) == [11, 13]


# Pillow refuses or warns of each of these.
BROKEN_CHUNKS = {
    "short pHYs": png_chunk(b"pHYs", b"\x00"),
    "empty sRGB": png_chunk(b"sRGB"),
    "iCCP without an end": png_chunk(b"iCCP", b"name"),
    "text bomb": png_chunk(b"zTXt", b"k\x00\x00" + zlib.compress(bytes(2_000_000))),
    "no frames": png_chunk(b"acTL", bytes(8)),
    "frame outside": png_chunk(b"fcTL", struct.pack(">IIIII6s", 0, 9999, 9999, 0, 0, bytes(6))),
    "second header": png_header(50_000, 50_000),
    "XMP": png_chunk(b"iTXt", b'XML:com.adobe.xmp\x00\x00\x00\x00\x00tiff:Orientation="6"'),
}


@pytest.mark.parametrize("chunk", BROKEN_CHUNKS.values(), ids=BROKEN_CHUNKS.keys())
def test_decode_png_with_broken_metadata_ignores_it(chunk):
    data = png_file(PICTURE, before_pixels=[chunk])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(levels_of(data), PICTURE)


def test_decode_png_followed_by_anything_ignores_it():
    assert np.array_equal(levels_of(PNG + b"and more"), PICTURE)


@pytest.mark.parametrize(
    "extra",
    [
        b"\xff\xe2\x00\x08MPF\x00II",
        b"\xff\xed\x00\x04??",
        b"\xff\xfe\x00\x03?",
        b"\xff\xff\x00\x00",
    ],
    ids=["malformed MPO", "APP13", "comment", "filling"],
)
def test_decode_jpeg_with_other_segments_ignores_them(extra):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(levels_of(JPEG[:2] + extra + JPEG[2:]), levels_of(JPEG))


def test_decode_jpeg_with_two_exif_blocks_obeys_the_first():
    once = image_file(Image.fromarray(PICTURE), "JPEG", exif=exif_block(3))
    body = exif_block(6)
    second = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    frame = once.index(b"\xff\xc0")

    twice = once[:frame] + second + once[frame:]

    assert np.array_equal(levels_of(twice), levels_of(JPEG)[::-1, ::-1])


def colour_jpeg(components: bytes, marker: bytes) -> bytes:
    """Returns a JPEG of three channels with these component ids and nothing but this marker."""
    data = image_file(Image.fromarray(np.dstack([PICTURE, PICTURE // 2, 255 - PICTURE])), "JPEG")
    frame, scan = data.index(b"\xff\xc0") + 10, data.index(b"\xff\xda") + 5
    data = bytearray(data)
    data[frame : frame + 9 : 3] = data[scan : scan + 6 : 2] = components
    tables = data.index(b"\xff\xdb")
    return b"\xff\xd8" + marker + bytes(data[tables:])


ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00d\x00\x00\x00\x00\x00"
JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"


@pytest.mark.parametrize(
    "components, marker",
    [(b"\x01\x02\x03", ADOBE_RGB), (b"RGB", JFIF)],
    ids=["Adobe RGB", "JFIF of components RGB"],
)
def test_decode_jpeg_with_a_colour_space_marker_obeys_it(components, marker):
    data = colour_jpeg(components, marker)

    as_pillow = np.asarray(Image.open(io.BytesIO(data)).convert("L"))

    assert np.array_equal(levels_of(data), as_pillow)
    assert not np.array_equal(levels_of(data), levels_of(colour_jpeg(components, b"")))


def test_decode_jpeg_of_several_pictures_gives_the_first():
    first, second = Image.fromarray(PICTURE), Image.fromarray(255 - PICTURE)
    data = image_file(first, "MPO", save_all=True, append_images=[second])

    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert np.array_equal(levels_of(data), levels_of(JPEG))
    assert np.array_equal(levels_of(data[:-20]), levels_of(JPEG)), "only the second is cut"


def test_decode_in_threads_equals_decoding_in_turn(tmp_path):
    contents = [(tmp_path / name).read_bytes() for name in write_odd_files(tmp_path)] * 4
    expected = [levels_of(data) for data in contents]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(levels_of, contents))

    for result, levels in zip(results, expected, strict=True):
        assert np.array_equal(result, levels)


# Pictures that are rejected.


def test_decode_bad_file_gives_its_reason(tmp_path):
    expected = {
        name: reason
        for name, reason in write_bad_files(tmp_path).items()
        if reason.stage is Stage.DECODE
    }

    reasons = {name: reject_of((tmp_path / name).read_bytes()).reason for name in expected}

    assert reasons == expected
    # A time-out is not for the decoder to see, and all decoders are installed here.
    others = {Reason.DECODE_TIMEOUT, Reason.DECODER_MISSING}
    assert set(expected.values()) == {r for r in Reason if r.stage is Stage.DECODE} - others


def test_bad_files_for_the_reader_are_what_they_say(tmp_path):
    expected = write_bad_files(tmp_path)

    assert expected["missing.png"] is Reason.NOT_FOUND
    assert not (tmp_path / "missing.png").exists()
    assert expected["folder.png"] is Reason.NOT_A_FILE
    assert (tmp_path / "folder.png").is_dir()
    assert expected["pipe.png"] is Reason.NOT_A_FILE
    assert (tmp_path / "pipe.png").is_fifo()
    assert len(expected) >= 14


def jpeg_frame(marker: int = 0xC0, bits: int = 8, channels: int = 1) -> bytes:
    start = JPEG.index(b"\xff\xc0")
    body = struct.pack(">BHHB", bits, 72, 96, channels) + b"\x01\x11\x00"
    return JPEG[:start] + bytes((0xFF, marker, 0, 11)) + body + JPEG[start + 13 :]


LAST_SCAN = JPEG[JPEG.index(b"\xff\xda") : -2]
REJECTS = {
    "nothing": (b"", Reason.EMPTY_FILE, "the file has no bytes"),
    "text": (b"patient", Reason.NOT_AN_IMAGE, "the content is neither PNG, JPEG nor DICOM"),
    "part of a magic": (PNG[:7], Reason.NOT_AN_IMAGE, "the content is neither PNG, JPEG nor DICOM"),
    "PNG made text": (
        PNG.replace(b"\r\n", b"\n"),
        Reason.NOT_AN_IMAGE,
        "the content is neither PNG, JPEG nor DICOM",
    ),
    "GIF": (b"GIF89a", Reason.UNSUPPORTED_FORMAT, f"GIF; {READABLE}"),
    "WebP": (b"RIFF\n\n\n\nWEBP", Reason.UNSUPPORTED_FORMAT, f"WebP; {READABLE}"),
    "TIFF": (b"II*\x00\x08", Reason.UNSUPPORTED_FORMAT, f"TIFF; {READABLE}"),
    "BigTIFF": (b"MM\x00+\x00", Reason.UNSUPPORTED_FORMAT, f"TIFF; {READABLE}"),
    "BMP": (b"BM\n\n\n\n" + bytes(4), Reason.UNSUPPORTED_FORMAT, f"BMP; {READABLE}"),
    "JP2": (b"\x00\x00\x00\x0cjP  \r\n", Reason.UNSUPPORTED_FORMAT, f"JPEG 2000; {READABLE}"),
    "J2K": (b"\xff\x4f\xff\x51", Reason.UNSUPPORTED_FORMAT, f"JPEG 2000; {READABLE}"),
    "JXL": (b"\xff\x0a\x00", Reason.UNSUPPORTED_FORMAT, f"JPEG XL; {READABLE}"),
    "HEIC": (b"\x00\x00\x00\x18ftypheic", Reason.UNSUPPORTED_FORMAT, f"HEIF or AVIF; {READABLE}"),
    "AVIF": (b"\x00\x00\x00\x18ftypavif", Reason.UNSUPPORTED_FORMAT, f"HEIF or AVIF; {READABLE}"),
    "12-bit JPEG": (
        jpeg_frame(0xC1, bits=12),
        Reason.UNSUPPORTED_FORMAT,
        f"JPEG of process SOF1, 12 bits, 1 channels; {READABLE}",
    ),
    "lossless JPEG": (
        jpeg_frame(0xC3),
        Reason.UNSUPPORTED_FORMAT,
        f"JPEG of process SOF3, 8 bits, 1 channels; {READABLE}",
    ),
    "JPEG-LS": (
        jpeg_frame(0xF7),
        Reason.UNSUPPORTED_FORMAT,
        f"JPEG of process SOF55, 8 bits, 1 channels; {READABLE}",
    ),
    "JPEG of two channels": (
        jpeg_frame(channels=2),
        Reason.UNSUPPORTED_FORMAT,
        f"JPEG of process SOF0, 8 bits, 2 channels; {READABLE}",
    ),
    "PNG header alone": (PNG[:33], Reason.TRUNCATED, "the PNG ends before its IEND chunk"),
    "PNG filled up with zeros": (
        PNG[:900] + bytes(len(PNG) - 900),
        Reason.CORRUPT,
        "wrong checksum in a PNG chunk",
    ),
    "JPEG filled up with zeros": (
        JPEG[:600] + bytes(len(JPEG) - 600),
        Reason.TRUNCATED,
        "the JPEG ends before its end marker",
    ),
    "JPEG without end": (JPEG[:-2], Reason.TRUNCATED, "the JPEG ends before its end marker"),
    "two JPEGs, the first cut": (
        JPEG[:-90] + JPEG,
        Reason.TRUNCATED,
        "the JPEG ends before its end marker",
    ),
    "PNG without header": (
        PNG_MAGIC + png_chunk(b"IDAT", PNG[16:29]) + PNG[33:],
        Reason.CORRUPT,
        "PNG without its header",
    ),
    "PNG with a long header": (
        PNG_MAGIC + png_chunk(b"IHDR", bytes(14)) + PNG[33:],
        Reason.CORRUPT,
        "PNG without its header",
    ),
    "PNG without pixels": (PNG[:33] + png_chunk(b"IEND"), Reason.CORRUPT, DAMAGED),
    "PNG of no colour type": (
        png_file(PICTURE, colour=5),
        Reason.CORRUPT,
        DAMAGED,
    ),
    "PNG of data that is not zlib": (
        PNG[:33] + png_chunk(b"IDAT", b"not zlib") + png_chunk(b"IEND"),
        Reason.CORRUPT,
        DAMAGED,
    ),
    "PNG with a checksum of IDAT wrong": (
        PNG[:-16] + bytes(4) + PNG[-12:],
        Reason.CORRUPT,
        "wrong checksum in a PNG chunk",
    ),
    "PNG short of rows": (
        png_file(PICTURE, rows=png_rows(PICTURE[:-1])),
        Reason.CORRUPT,
        "the PNG holds fewer rows than its header says",
    ),
    "interlaced PNG short of passes": (
        png_file(PICTURE, interlaced=True, rows=png_rows(PICTURE[:20], interlaced=True)),
        Reason.CORRUPT,
        DAMAGED,
    ),
    "PNG with half a row": (
        png_file(PICTURE, rows=png_rows(PICTURE)[:-40]),
        Reason.CORRUPT,
        DAMAGED,
    ),
    "PNG without its palette": (
        png_file(PICTURE, colour=PALETTE),
        Reason.CORRUPT,
        "PNG with pixels outside its palette",
    ),
    "PNG outside its palette": (
        png_file(np.array([[0, 1, 2]]), 8, PALETTE, before_pixels=[png_chunk(b"PLTE", bytes(6))]),
        Reason.CORRUPT,
        "PNG with pixels outside its palette",
    ),
    "PNG with a huge palette": (
        png_file(PICTURE, colour=PALETTE, before_pixels=[png_chunk(b"PLTE", bytes(771))]),
        Reason.CORRUPT,
        DAMAGED,
    ),
    "JPEG without frame": (
        JPEG.replace(b"\xff\xc0", b"\xff\xfe"),
        Reason.CORRUPT,
        "JPEG without its frame header",
    ),
    "JPEG with a short frame": (
        JPEG[:2] + b"\xff\xc0\x00\x04ab" + JPEG[2:],
        Reason.CORRUPT,
        "JPEG with a short frame header",
    ),
    "JPEG of nothing": (b"\xff\xd8\xff\xd9", Reason.CORRUPT, "JPEG without its frame header"),
    "JPEG of two frames": (
        with_frame(JPEG)[:2] + b"\xff\xc0\x00\x0b\x08\x00\x48\x00\x60\x01\x01\x11\x00" + JPEG[2:],
        Reason.CORRUPT,
        DAMAGED,
    ),
    "JPEG with a marker in its scan": (
        JPEG[:-40] + b"\xff\xc1\x00\x02" + JPEG[-36:],
        Reason.CORRUPT,
        "a marker out of place in the JPEG, or too many scans",
    ),
    "JPEG of too many scans": (
        JPEG[:-2] + LAST_SCAN * 100 + JPEG[-2:],
        Reason.CORRUPT,
        "a marker out of place in the JPEG, or too many scans",
    ),
    "PNG of no height": (png_file(PICTURE[:0]), Reason.ZERO_DIMENSION, "96x0 pixels"),
    "JPEG of no width": (with_frame(JPEG, width=0), Reason.ZERO_DIMENSION, "0x72 pixels"),
    "large JPEG": (
        with_frame(JPEG, height=65_535, width=65_535),
        Reason.TOO_MANY_PIXELS,
        f"65535x65535 pixels; {LIMITS}",
    ),
    # Pillow raises MemoryError over a row of so many bits.
    "long row": (
        PNG_MAGIC + png_header(40_000_000, 1, 16, RGBA) + PNG[33:],
        Reason.TOO_MANY_PIXELS,
        f"40000000x1 pixels; {LIMITS}",
    ),
    "animated PNG": (
        png_file(PICTURE, before_pixels=[png_chunk(b"acTL", struct.pack(">II", 2, 0))]),
        Reason.ANIMATED,
        "PNG of more than one frame",
    ),
}


@pytest.mark.parametrize("data, reason, detail", REJECTS.values(), ids=REJECTS.keys())
def test_decode_of_bad_bytes_says_what_is_wrong(data, reason, detail):
    error = reject_of(data)

    assert (error.reason, error.detail) == (reason, detail)


def test_decode_animated_png_of_one_frame_is_read():
    data = png_file(PICTURE, before_pixels=[png_chunk(b"acTL", struct.pack(">II", 1, 0))])

    assert np.array_equal(levels_of(data), PICTURE)


def test_decode_png_with_black_last_rows_is_read():
    black_below = PICTURE.copy()
    black_below[30:] = 0

    assert np.array_equal(levels_of(png_file(black_below)), black_below)


def test_decode_png_whose_checksum_fails_after_black_rows_is_corrupt():
    rows = zlib.compress(png_rows(np.zeros((72, 96), int)), level=0)
    # Pillow has all rows before it comes to the second chunk.
    pixels = png_chunk(b"IDAT", rows[:-4]) + png_chunk(b"IDAT", b"sums")

    error = reject_of(PNG[:33] + pixels + png_chunk(b"IEND"))

    assert (error.reason, error.detail) == (Reason.CORRUPT, DAMAGED)


def test_decode_at_the_pixel_limit_is_read_and_above_it_is_rejected(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 96 * 72)
    assert np.array_equal(levels_of(PNG), PICTURE)

    monkeypatch.setattr(decoding, "MAX_PIXELS", 96 * 72 - 1)
    assert reject_of(PNG).reason is Reason.TOO_MANY_PIXELS
    assert reject_of(JPEG).reason is Reason.TOO_MANY_PIXELS


# 100 megapixels make Pillow warn, 1600 make it raise.
@pytest.mark.parametrize("side", [10_000, 40_000])
def test_decode_of_a_bomb_never_reaches_pillow_and_warns_of_nothing(side, monkeypatch):
    monkeypatch.setattr(decoding.Image, "open", lambda *_, **__: pytest.fail("Pillow was called"))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png = reject_of(PNG_MAGIC + png_header(side, side) + PNG[33:])
        jpeg = reject_of(with_frame(JPEG, height=side, width=side))

    assert (png.reason, jpeg.reason) == (Reason.TOO_MANY_PIXELS, Reason.TOO_MANY_PIXELS)
    assert png.detail == jpeg.detail == f"{side}x{side} pixels; {LIMITS}"


def test_decode_error_never_quotes_the_file():
    name = png_chunk(b"tEXt", b"Patient\x00DOE^JANE")
    broken = png_chunk(b"IDAT", b"DOE^JANE") + png_chunk(b"DOEJ") + png_chunk(b"IEND")

    error = reject_of(PNG[:33] + name + broken)

    assert str(error) == f"corrupt: {DAMAGED}"


# Any damage at all.


@pytest.mark.parametrize("data", SMALL_FILES.values(), ids=SMALL_FILES.keys())
def test_decode_of_a_file_cut_anywhere_is_rejected(data):
    levels_of(data)  # Whole, it decodes.
    reasons = {reject_of(data[:cut]).reason for cut in range(1, len(data))}

    assert Reason.TRUNCATED in reasons
    assert reasons <= {Reason.TRUNCATED, Reason.CORRUPT, Reason.NOT_AN_IMAGE}


@pytest.mark.parametrize("data", SMALL_FILES.values(), ids=SMALL_FILES.keys())
def test_decode_of_a_file_cut_and_filled_with_zeros_is_rejected(data):
    last = len(data.rstrip(b"\x00"))
    for cut in range(1, last):
        filled = data[:cut] + bytes(len(data) - cut)
        if filled != data:
            reject_of(filled)


@quick
@given(data=st.binary(max_size=400), magic=st.sampled_from((b"", PNG_MAGIC, b"\xff\xd8\xff")))
def test_prepare_of_any_bytes_gives_a_square_or_a_reason(data, magic):
    assert_square_or_reject(magic + data)


@settings(deadline=None, max_examples=600)
@given(data=st.data(), original=st.sampled_from(list(SMALL_FILES.values())))
def test_prepare_of_a_file_with_one_byte_changed_gives_a_square_or_a_reason(data, original):
    position = data.draw(st.integers(0, len(original) - 1))
    damaged = bytearray(original)
    damaged[position] = data.draw(st.integers(0, 255))

    assert_square_or_reject(bytes(damaged))
    assert_square_or_reject(without_chunk_errors(bytes(damaged)))


@quick
@given(data=st.data())
def test_decode_png_with_any_byte_changed_is_never_another_picture(data):
    original = SMALL_FILES["grey PNG"]
    position = data.draw(st.integers(0, len(original) - 1))
    damaged = bytearray(original)
    damaged[position] ^= data.draw(st.integers(1, 255))

    reject_of(bytes(damaged))


@quick
@given(data=st.data(), first=st.sampled_from(list(SMALL_FILES.values())))
def test_prepare_of_two_files_spliced_gives_a_square_or_a_reason(data, first):
    second = data.draw(st.sampled_from(list(SMALL_FILES.values())))
    spliced = (
        first[: data.draw(st.integers(0, len(first)))]
        + second[data.draw(st.integers(0, len(second))) :]
    )

    assert_square_or_reject(spliced)
    assert_square_or_reject(without_chunk_errors(spliced))


def test_decode_beside_damaged_files_in_threads_keeps_its_pixels():
    rng = np.random.default_rng(3)
    files = list(SMALL_FILES.values()) * 20
    expected = [levels_of(data) for data in files]
    damaged = [bytearray(data) for data in files]
    for changed in damaged:
        changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        beside = [
            (pool.submit(levels_of, data), pool.submit(assert_square_or_reject, bytes(bad)))
            for data, bad in zip(files, damaged, strict=True)
        ]

    for (whole, bad), levels in zip(beside, expected, strict=True):
        bad.result()
        assert np.array_equal(whole.result(), levels)


def _of_parts(image_format, number):
    """Returns a picture with so many more empty chunks or segments than it needs."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 77).save(buffer, image_format)
    data = buffer.getvalue()
    if image_format == "JPEG":
        return data[:2] + b"\xff\xfe\x00\x02" * number + data[2:]
    chunk = struct.pack(">I4sI", 0, b"tEXt", zlib.crc32(b"tEXt"))
    return data[:33] + chunk * number + data[33:]


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_decode_grey_parts_without_end_are_refused_and_many_are_not(image_format):
    assert decode_grey(_of_parts(image_format, 99_000)).image.getpixel((4, 4)) == 77
    with pytest.raises(ImageError) as caught:
        decode_grey(_of_parts(image_format, 100_000))
    assert caught.value.reason is Reason.CORRUPT
    assert caught.value.detail == "more than 100000 chunks or segments"
