"""Decoding PNG, JPEG and DICOM into grey, strictly: a damaged file is no image.

What is read, and what becomes of it:

| In the file | What happens |
|---|---|
| PNG or JPEG, told by content | read; the file's name is never looked at |
| DICOM | read as the table of `model.dicom` says |
| another image format; 12-bit, lossless, arithmetic or hierarchical JPEG | `unsupported_format` |
| no bytes; bytes that are no image | `empty_file`; `not_an_image` |
| an end that is missing: PNG before IEND, JPEG before EOI | `truncated` |
| a wrong PNG checksum, picture data that does not decode, missing rows | `corrupt` |
| a width or height of 0 | `zero_dimension` |
| more than `MAX_PIXELS`, or than `MAX_SIDE` on a side | `too_many_pixels`, before decoding |
| an animated PNG of more than one frame | `animated` |
| 1, 2 and 4-bit grey | spread over 0 to 255 |
| 16-bit grey | divided by 257, rounded to nearest, whatever range the picture uses |
| 16-bit colour, 16-bit grey with alpha | the high byte of each sample |
| colour, palette, CMYK | ITU-R 601 luma of its RGB; that of a JPEG as it is stored |
| alpha of a pixel, a palette entry or a colour | ignored: as if opaque |
| EXIF orientation | applied; a broken EXIF block counts as upright |
| text, XMP, colour profiles, gamma, previews, pictures after the first | ignored, broken or not |

Two things are not seen. A JPEG has no checksum, so damage to its picture data that leaves
the structure whole, such as a file cut short and closed again with an end marker, decodes.
And an interlaced PNG, intact by its checksums, may lack pixels of its last pass.
"""

import contextlib
import dataclasses
import io
import re
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from model.dicom import decode_dicom, is_dicom
from schemas.quality import Quality
from schemas.rejects import ImageError, Reason

MAX_PIXELS = 64_000_000
"""The most pixels an image may have, several times a full-size digital radiograph."""
MAX_SIDE = 65_535
"""The most pixels a side may have, as in JPEG; Pillow runs out of memory on wider rows."""

_UNDECODABLE = "the picture data does not decode"
_READABLE = "PNG, 8-bit Huffman-coded JPEG and DICOM are read"
_OTHER_FORMATS = {
    "GIF": rb"GIF8[79]a",
    "WebP": rb"RIFF.{4}WEBP",
    "TIFF": rb"II[*+]\x00|MM\x00[*+]",
    "BMP": rb"BM.{4}\x00{4}",
    "JPEG 2000": rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\x00\x00\x00\x0cJXL |\xff\x0a",
    "HEIF or AVIF": rb".{4}ftyp(hei|hev|mif|msf|avi)",
}

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER = struct.Struct(">IIBBBBB")
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples of a pixel, by colour type."""
_INFLATE_STEP = 1 << 24

_JPEG_MAGIC = b"\xff\xd8\xff"
_JPEG_FRAME = struct.Struct(">BHHB")
# A stuffed zero, a fill byte, TEM or a restart marker is part of the data around it.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")
_EOI, _SOS, _APP1 = 0xD9, 0xDA, 0xE1
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_HUFFMAN_FRAMES = frozenset((0xC0, 0xC1, 0xC2))
_TABLES = frozenset((0xC4, 0xCC, 0xDB, 0xDD))
_KEPT = _TABLES | _FRAMES | {0xE0, 0xEE}
"""What the decoder is given; JFIF's APP0 and Adobe's APP14 tell it the colour space."""
_AFTER_SCAN = _TABLES | {_EOI, _SOS, 0xDC, 0xFE} | frozenset(range(0xE0, 0xF0))
MAX_SCANS = 100
"""An encoder makes some ten; a file of thousands would take hours."""

_MAX_PARTS = 100_000
"""Chunks of a PNG or segments of a JPEG: 256 MiB in chunks of 8 KiB are 32,768."""

_EXIF_MAGIC = b"Exif\x00\x00"
_EXIF_ORIENTATION, _EXIF_SHORT = 0x0112, 3
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = frozenset((5, 6, 7, 8))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class GreyImage:
    """A decoded image, in display orientation.

    Attributes:
      image: Mode `L`; smaller than the file's where that was allowed.
      width: Of the file's full-size image, in pixels.
      height: Likewise.
      header_codes: Quality codes that the file's header gives; of DICOM alone.
    """

    image: Image.Image
    width: int
    height: int
    header_codes: tuple[Quality, ...] = ()


def decode_grey(data: bytes, at_least: int | None = None) -> GreyImage:
    """Returns the image of a file, by the module's table.

    Pillow sees the picture alone: its chunks or segments are copied out first, without
    the text, profiles, EXIF and previews around them. So nothing that is wrong with those
    costs the image, Pillow has nothing to warn of, and limits are checked before it starts.
    Safe in threads.

    Args:
      data: All of the file.
      at_least: Lets a JPEG be decoded to a half, a quarter or an eighth of its size, which
        costs less, where both sides stay at least that long, in pixels. None for full size.

    Raises:
      ImageError: The image cannot be used.
    """
    if not data:
        raise ImageError(Reason.EMPTY_FILE, "the file has no bytes")
    codes, exif = (), b""
    if data.startswith(_PNG_MAGIC):
        image, exif = _decode_png(data)
        size = image.size
    elif data.startswith(_JPEG_MAGIC):
        image, size, exif = _decode_jpeg(data, at_least)
    elif is_dicom(data):
        image, codes = decode_dicom(data)
        size = image.size
    else:
        raise _refusal(data)
    orientation = _orientation(exif)
    grey = _to_grey(image)
    if orientation in _TURNS:
        grey = grey.transpose(_TURNS[orientation])
    width, height = size[::-1] if orientation in _ON_ITS_SIDE else size
    return GreyImage(grey, width, height, codes)


def _refusal(data: bytes) -> ImageError:
    for name, pattern in _OTHER_FORMATS.items():
        if re.match(pattern, data, re.DOTALL):
            return ImageError(Reason.UNSUPPORTED_FORMAT, f"{name}; {_READABLE}")
    return ImageError(Reason.NOT_AN_IMAGE, "the content is neither PNG, JPEG nor DICOM")


def check_size(width: int, height: int) -> None:
    """Raises if an image of that size, in pixels, is not decoded.

    Raises:
      ImageError: It has no pixels, or more than `MAX_PIXELS`, or than `MAX_SIDE` on a side.
    """
    size = f"{width}x{height} pixels"
    if not width or not height:
        raise ImageError(Reason.ZERO_DIMENSION, size)
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        limits = f"the limits are {MAX_PIXELS} in all and {MAX_SIDE} on a side"
        raise ImageError(Reason.TOO_MANY_PIXELS, f"{size}; {limits}")


@contextlib.contextmanager
def _naming_pillows_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        # Pillow's own words can quote the file.
        raise ImageError(Reason.CORRUPT, _UNDECODABLE) from error


def _to_grey(image: Image.Image) -> Image.Image:
    if image.mode == "L":
        return image
    if image.mode.startswith("I"):
        # floor((x + 128) / 257) rounds to nearest; the minimum keeps the sum within 16 bits.
        levels = np.minimum(np.asarray(image), 65535 - 128)
        levels += 128
        levels //= 257
        return Image.fromarray(levels.astype(np.uint8))
    return image.convert("L")


def _orientation(exif: bytes) -> int:
    """Returns the EXIF orientation, 1 to 8 if valid; 1, upright, where none can be read."""
    exif = exif.removeprefix(_EXIF_MAGIC)
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(entries):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, start + 2 + 12 * entry)
            if (tag, kind) == (_EXIF_ORIENTATION, _EXIF_SHORT):
                return value
    except struct.error:
        pass  # The directory points outside the block: it is read as far as it goes.
    return 1


def _decode_png(data: bytes) -> tuple[Image.Image, bytes]:
    """Returns the image and its EXIF block, which may be empty."""
    header = palette = exif = b""
    pixels = []
    for kind, chunk in within_limit(_png_chunks(data)):
        body = chunk[8:-4]
        if not header:
            if kind != b"IHDR" or len(body) != _PNG_HEADER.size:
                raise ImageError(Reason.CORRUPT, "PNG without its header")
            check_size(*_PNG_HEADER.unpack(body)[:2])
            header = chunk
        elif kind == b"PLTE":
            palette = chunk
        elif kind in (b"IDAT", b"IEND"):
            pixels.append(chunk)
        elif kind == b"eXIf":
            exif = bytes(body)
        elif kind == b"acTL" and int.from_bytes(body[:4]) > 1:
            raise ImageError(Reason.ANIMATED, "PNG of more than one frame")
    picture = b"".join((_PNG_MAGIC, header, palette, *pixels))
    with _naming_pillows_errors():
        image = Image.open(io.BytesIO(picture), formats=("PNG",))
        image.load()
    # Pillow would make these pixels black.
    if image.mode == "P" and image.getextrema()[1] >= len(palette[8:-4]) // 3:
        raise ImageError(Reason.CORRUPT, "PNG with pixels outside its palette")
    _check_rows(image, header[8:-4], pixels)
    return image, exif


def within_limit(parts: Iterator[tuple]) -> Iterator[tuple]:
    """Passes chunks or segments on; a file of a million empty ones would fill the memory.

    Raises:
      ImageError: There are too many.
    """
    for number, part in enumerate(parts):
        if number == _MAX_PARTS:
            raise ImageError(Reason.CORRUPT, f"more than {_MAX_PARTS} chunks or segments")
        yield part


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yields the kind and the whole of each chunk up to IEND, its checksum verified."""
    view, end, kind = memoryview(data), len(_PNG_MAGIC), b""
    while kind != b"IEND":
        start, kind = end, data[end + 4 : end + 8]
        end += 12 + int.from_bytes(view[start : start + 4])
        if end > len(data):
            raise ImageError(Reason.TRUNCATED, "the PNG ends before its IEND chunk")
        if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            raise ImageError(Reason.CORRUPT, "wrong checksum in a PNG chunk")
        yield kind, view[start:end]


def _check_rows(image: Image.Image, header: memoryview, chunks: list[memoryview]) -> None:
    """Rejects a well-formed PNG whose data holds fewer rows than its header promises.

    Pillow leaves such rows black without a word. Counting takes a second inflation, so it
    is done only where the last row is black. An interlaced PNG holds at least as much.
    """
    width, height, depth, colour, *_ = _PNG_HEADER.unpack(header)
    if image.crop((0, height - 1, width, height)).getbbox():
        return
    missing = height * (1 + (width * depth * _PNG_SAMPLES[colour] + 7) // 8)
    block, inflater = b"".join(chunk[8:-4] for chunk in chunks), zlib.decompressobj()
    try:
        while missing > 0 and (rows := inflater.decompress(block, _INFLATE_STEP)):
            missing -= len(rows)
            block = inflater.unconsumed_tail
    except zlib.error as error:
        raise ImageError(Reason.CORRUPT, _UNDECODABLE) from error
    if missing > 0:
        raise ImageError(Reason.CORRUPT, "the PNG holds fewer rows than its header says")


def _decode_jpeg(data: bytes, at_least: int | None) -> tuple[Image.Image, tuple[int, int], bytes]:
    """Returns the first picture, its full size, and its EXIF block, which may be empty."""
    view = memoryview(data)
    picture, exif, framed, scans = [view[:2]], b"", False, []
    for marker, start, end in within_limit(jpeg_segments(data)):
        if (scans and marker not in _AFTER_SCAN) or len(scans) > MAX_SCANS:
            raise ImageError(Reason.CORRUPT, "a marker out of place in the JPEG, or too many scans")
        if marker in (_SOS, _EOI):
            scans.append(start)
        elif marker in _FRAMES:
            _check_jpeg_frame(marker, view[start + 4 : end])
            framed = True
        elif marker == _APP1 and not exif and data.startswith(_EXIF_MAGIC, start + 4):
            exif = data[start + 4 : end]
        if marker in _KEPT and not scans:
            picture.append(view[start:end])
    if not framed:
        raise ImageError(Reason.CORRUPT, "JPEG without its frame header")
    with _naming_pillows_errors():
        image = Image.open(
            io.BytesIO(b"".join((*picture, view[scans[0] : end]))), formats=("JPEG",)
        )
        size = image.size
        # Grey is what a JPEG of colour stores beside its two colour channels.
        image.draft("L", _reduced(size, at_least) if at_least else None)
        image.load()
    return image, size, exif


def _reduced(size: tuple[int, int], at_least: int) -> tuple[int, int]:
    """Returns the smallest size, both sides `at_least` long, that a JPEG can be decoded to."""
    for scale in (8, 4, 2):
        # Else the last row and column would stand for pixels beyond the image.
        if all(side % scale == 0 and side // scale >= at_least for side in size):
            return size[0] // scale, size[1] // scale
    return size


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields the marker, start and end of each segment up to EOI, stepping over scan data.

    Raises:
      ImageError: There is no EOI.
    """
    marker, end = 0, 2
    while marker != _EOI:
        if found := _JPEG_MARKER.search(data, end):
            start, end = found.span()
            marker = data[end - 1]
            end += 0 if marker == _EOI else int.from_bytes(data[end : end + 2])
        if not found or end > len(data):
            raise ImageError(Reason.TRUNCATED, "the JPEG ends before its end marker")
        yield marker, start, end


def _check_jpeg_frame(marker: int, body: memoryview) -> None:
    if len(body) < _JPEG_FRAME.size:
        raise ImageError(Reason.CORRUPT, "JPEG with a short frame header")
    bits, height, width, channels = _JPEG_FRAME.unpack_from(body)
    if marker not in _HUFFMAN_FRAMES or bits != 8 or channels not in (1, 3, 4):
        kind = f"JPEG of process SOF{marker - 0xC0}, {bits} bits, {channels} channels"
        raise ImageError(Reason.UNSUPPORTED_FORMAT, f"{kind}; {_READABLE}")
    check_size(width, height)
