"""The pixels of a DICOM file as they are stored, of every transfer syntax that is read.

| transfer syntax | read by |
|---|---|
| implicit and explicit little endian, explicit big endian, deflated | NumPy |
| JPEG baseline, extended (8 and 12 bits), lossless | imagecodecs: libjpeg-turbo |
| JPEG-LS, lossless and near-lossless | imagecodecs: CharLS |
| JPEG 2000 and high-throughput JPEG 2000, lossless and lossy | imagecodecs: OpenJPEG |
| RLE | imagecodecs |

The sizes that a codestream gives of itself are compared with the header's before it is decoded.
JPEG 2000 is decoded at full size: the decoder offers no other.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

import imagecodecs
import numpy as np
from pydicom import uid
from pydicom.config import IGNORE
from pydicom.datadict import tag_for_keyword
from pydicom.encaps import generate_fragments

from model.decoding import MAX_SCANS, check_size, jpeg_segments, within_limit
from model.dicom_header import DicomFile, ReadStream, invalid
from schemas.rejects import ImageError, Reason

_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
_LUMA_FIRST = ("YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420")
_OF_JPEG2000 = ("YBR_ICT", "YBR_RCT")
"""What JPEG 2000 makes of RGB inside; its decoder gives RGB back."""
_SAMPLES = {
    **dict.fromkeys((*_MONOCHROME, "PALETTE COLOR"), 1),
    **dict.fromkeys((*_LUMA_FIRST, "RGB", *_OF_JPEG2000), 3),
}

_DELIMITER = b"\xfe\xff\xdd\xe0"
_END_MARKER = b"\xff\xd9"
_J2K_START = b"\xff\x4f\xff\x51"
_J2K_SIZE = struct.Struct(">HH8LHB")
_JPEG_FRAME = struct.Struct(">BHHB")
_SOF_LS, _SOS, _APP0, _APP14 = 0xF7, 0xDA, 0xE0, 0xEE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """How pixels are stored, as the header says it; PS3.3 C.7.6.3.

    Attributes:
      rows, columns: Of the image.
      samples: Of a pixel, 1 or 3.
      photometric_interpretation: What the samples mean.
      bits_allocated: Of a cell, 8 or 16.
      bits_stored: Used of it, 1 to `bits_allocated`.
      high_bit: The highest of those, from 0.
      signed: Whether the highest is a sign.
      by_plane: Whether uncompressed samples lie plane after plane.
    """

    rows: int
    columns: int
    samples: int
    photometric_interpretation: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    by_plane: bool


def read_pixel_format(dicom: DicomFile) -> PixelFormat:
    """Returns how the pixels are stored.

    Raises:
      ImageError: There are none, or they are none that can be read.
    """
    elements = dicom.elements
    _check_kind(dicom)
    rows, columns, samples, allocated, stored, representation = (
        _required(elements.integer(keyword), keyword)
        for keyword in (
            *("Rows", "Columns", "SamplesPerPixel"),
            *("BitsAllocated", "BitsStored", "PixelRepresentation"),
        )
    )
    check_size(columns, rows)
    photometric = _required(elements.text(key := "PhotometricInterpretation"), key)
    if photometric not in _SAMPLES:
        raise ImageError(Reason.UNSUPPORTED_FORMAT, "DICOM of another photometric interpretation")
    if samples != _SAMPLES[photometric]:
        raise invalid("SamplesPerPixel contradicts PhotometricInterpretation")
    if allocated not in (8, 16):
        kind = f"DICOM of {allocated} bits a sample; 8 and 16 are read"
        raise ImageError(Reason.UNSUPPORTED_FORMAT, kind)
    high = elements.integer("HighBit")
    high = stored - 1 if high is None else high
    if not 1 <= stored <= high + 1 <= allocated:
        raise invalid("BitsAllocated, BitsStored and HighBit contradict one another")
    if representation not in ((0, 1) if samples == 1 else (0,)):
        raise invalid("PixelRepresentation is none that these pixels can have")
    by_plane = elements.integer("PlanarConfiguration") == 1
    signed = representation == 1
    return PixelFormat(
        rows, columns, samples, photometric, allocated, stored, high, signed, by_plane
    )


def _required(value: int | str | None, keyword: str) -> int | str:
    if value is None or value == "":
        raise invalid(f"{keyword} is missing")
    return value


def _check_kind(dicom: DicomFile) -> None:
    elements, pixels = dicom.elements, dicom.pixels
    if pixels is None or pixels.length == 0:
        class_uid = elements.text("SOPClassUID") or elements.text("MediaStorageSOPClassUID")
        kind = _known(class_uid).keyword
        if "Image" in kind or not kind:
            raise ImageError(Reason.NO_PIXEL_DATA, "a DICOM file without pixels")
        raise ImageError(Reason.NOT_AN_IMAGE, f"a DICOM object of the class {kind}")
    if pixels.tag != tag_for_keyword("PixelData"):
        raise ImageError(Reason.UNSUPPORTED_FORMAT, "DICOM of floating-point pixels")
    frames = elements.integer("NumberOfFrames")
    if frames is not None and frames > 1:
        raise ImageError(Reason.MULTI_FRAME, "a DICOM object of more than one frame")
    if frames is not None and frames < 1:
        raise invalid("NumberOfFrames is under 1")
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        if keyword in elements:  # These hold what the pixels mean, frame by frame.
            raise ImageError(Reason.UNSUPPORTED_FORMAT, "an enhanced multi-frame object")


def _known(text: str) -> uid.UID:
    """Returns a UID with the names that the standard gave it; unknown, it may be any text."""
    return uid.UID(text, IGNORE)


def read_cells(dicom: DicomFile, pixel_format: PixelFormat) -> np.ndarray:
    """Returns the pixels: uint8 or uint16, `(rows, columns)` or, of RGB, `(rows, columns, 3)`.

    Of colour with a luma that is the first sample, that alone. The values are bits as they are
    stored: not yet shifted, masked or taken for signed.

    Raises:
      ImageError: The pixels are not there, or do not decode.
    """
    syntax = dicom.transfer_syntax
    if syntax in _NATIVE or (not syntax and dicom.pixels.length is not None):
        return _native_cells(dicom, pixel_format)
    if syntax not in _CODECS:
        known = _known(syntax)
        name = known.name if known.keyword else "a transfer syntax not known"
        raise ImageError(Reason.UNSUPPORTED_TRANSFER_SYNTAX, name)
    if pixel_format.photometric_interpretation in _OF_JPEG2000 and syntax not in _JPEG2000:
        raise invalid("PhotometricInterpretation is none that this transfer syntax can have")
    codestream = _codestream(dicom)
    try:
        cells = _CODECS[syntax](codestream, pixel_format)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        # The errors of imagecodecs, of all kinds.
        raise ImageError(Reason.CORRUPT, "the picture data does not decode") from error
    shape = (pixel_format.rows, pixel_format.columns, pixel_format.samples)
    if cells.size != math.prod(shape):
        raise _other_size()
    if syntax in _LOSSY:
        cells = _clamped(cells, pixel_format)
    return _as_unsigned(cells.reshape(shape), pixel_format)


def _clamped(cells: np.ndarray, pixel_format: PixelFormat) -> np.ndarray:
    """Keeps what a lossy decoder makes of white from running over into black."""
    bits = pixel_format.bits_stored
    if pixel_format.high_bit != bits - 1:
        return cells
    if cells.dtype.kind == "i":
        return np.clip(cells, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    return np.minimum(cells, (1 << bits) - 1)


def _as_unsigned(cells: np.ndarray, pixel_format: PixelFormat) -> np.ndarray:
    if cells.dtype.kind == "i":
        size = pixel_format.bits_allocated // 8
        cells = cells.astype(f"i{size}").view(f"u{size}")
    if pixel_format.samples == 1 or pixel_format.photometric_interpretation in _LUMA_FIRST:
        return cells[..., 0]
    return cells


def _native_cells(dicom: DicomFile, pixel_format: PixelFormat) -> np.ndarray:
    rows, columns, samples = pixel_format.rows, pixel_format.columns, pixel_format.samples
    if pixel_format.photometric_interpretation in (*_OF_JPEG2000, "YBR_PARTIAL_420"):
        raise invalid("PhotometricInterpretation is none that this transfer syntax can have")
    halved = pixel_format.photometric_interpretation.endswith("_422")
    if halved and (columns % 2 or pixel_format.bits_allocated != 8):
        raise invalid("PhotometricInterpretation wants an even number of columns and 8 bits")
    order = "<" if dicom.little_endian else ">"
    cell = np.dtype(f"{order}u{pixel_format.bits_allocated // 8}")
    count = rows * columns * (2 if halved else samples)
    pixels = dicom.pixels
    if pixels.length is None or pixels.length < count * cell.itemsize:
        raise ImageError(Reason.CORRUPT, "fewer pixels than rows and columns say")
    if pixels.start + count * cell.itemsize > len(dicom.data):
        raise _cut()
    if cell.itemsize == 1 and pixels.vr == "OW" and order == ">":
        words = np.frombuffer(dicom.data, ">u2", (count + 1) // 2, pixels.start)
        cells = words.astype("<u2").view(np.uint8)[:count]
    else:
        cells = np.frombuffer(dicom.data, cell, count, pixels.start)
    if halved:  # two lumas, then the colour of both
        return cells.reshape(rows, columns // 2, 4)[..., :2].reshape(rows, columns)
    if samples > 1 and pixel_format.by_plane:
        cells = np.moveaxis(cells.reshape(samples, rows, columns), 0, 2)
    return _as_unsigned(cells.reshape(rows, columns, samples), pixel_format)


def _codestream(dicom: DicomFile) -> bytes:
    """Returns the one frame, put together of its fragments; PS3.5 A.4."""
    if dicom.pixels.length is not None:
        raise ImageError(Reason.CORRUPT, "compressed pixels that are not in fragments")
    stream = ReadStream(dicom.data)
    stream.seek(dicom.pixels.start)
    try:
        _, *fragments = generate_fragments(stream)
    except ValueError:
        fragments = ()
    end = stream.tell()
    if dicom.data[end - 4 : end] != _DELIMITER:
        if end >= len(dicom.data):
            raise _cut()
        raise ImageError(Reason.CORRUPT, "fragments of pixels that do not follow one another")
    if not any(fragments):
        raise ImageError(Reason.NO_PIXEL_DATA, "a DICOM file without pixels")
    return b"".join(fragments)


def _check_codestream(
    pixel_format: PixelFormat, height: int, width: int, samples: int, bits: int
) -> None:
    expected = (pixel_format.rows, pixel_format.columns, pixel_format.samples)
    if (height, width, samples) != expected:
        raise _other_size()
    if bits > pixel_format.bits_allocated:
        raise ImageError(Reason.CORRUPT, "the picture data has more bits than the header says")


def _decode_jpeg(codestream: bytes, pixel_format: PixelFormat) -> np.ndarray:
    luma_first, frames, scans = False, 0, 0
    for marker, start, end in within_limit(jpeg_segments(codestream)):
        body = codestream[start + 4 : end]
        if marker in _FRAMES:
            frames += 1
            bits, height, width, samples = _JPEG_FRAME.unpack_from(_long_enough(body, 6))
            _check_codestream(pixel_format, height, width, samples, bits)
        elif marker == _SOS:
            scans += 1
        elif marker == _APP0:
            luma_first |= body.startswith(b"JFIF\0")
        elif marker == _APP14:
            luma_first |= body.startswith(b"Adobe") and body[11:12] == b"\1"
    if frames != 1 or not 0 < scans <= MAX_SCANS:
        raise ImageError(Reason.CORRUPT, "a JPEG without its one frame, or of too many scans")
    if pixel_format.samples == 1:
        return imagecodecs.jpeg8_decode(codestream)
    # Named the same on both sides, so that the samples stay as they are stored.
    cells = imagecodecs.jpeg8_decode(codestream, colorspace="RGB", outcolorspace="RGB")
    return np.repeat(cells[..., :1], 3, axis=2) if luma_first else cells


def _decode_jpeg_ls(codestream: bytes, pixel_format: PixelFormat) -> np.ndarray:
    _check_end(codestream)
    at, marker = 2, 0
    while marker != _SOF_LS:
        at += 2 + int.from_bytes(codestream[at + 2 : at + 4]) if marker else 0
        marker = _long_enough(codestream[at : at + 4], 4)[1]
    frame = _long_enough(codestream[at + 4 :], 6)
    bits, height, width, samples = _JPEG_FRAME.unpack_from(frame)
    _check_codestream(pixel_format, height, width, samples, bits)
    return imagecodecs.jpegls_decode(codestream)


def _decode_jpeg2000(codestream: bytes, pixel_format: PixelFormat) -> np.ndarray:
    _check_end(codestream)
    start = codestream.find(_J2K_START)  # some writers wrap it in a file of its own
    size = _long_enough(codestream[start + 4 :] if start >= 0 else b"", _J2K_SIZE.size)
    _, _, right, bottom, left, top, *_, samples, depth = _J2K_SIZE.unpack_from(size)
    _check_codestream(pixel_format, bottom - top, right - left, samples, (depth & 0x7F) + 1)
    return imagecodecs.jpeg2k_decode(codestream, numthreads=1)


def _decode_rle(codestream: bytes, pixel_format: PixelFormat) -> np.ndarray:
    cell = np.dtype(f"<u{pixel_format.bits_allocated // 8}")
    shape = (pixel_format.samples, pixel_format.rows, pixel_format.columns)
    data = imagecodecs.dicomrle_decode(codestream, cell.str, out=math.prod(shape) * cell.itemsize)
    if len(data) != math.prod(shape) * cell.itemsize:
        raise _other_size()
    return np.moveaxis(np.frombuffer(data, cell).reshape(shape), 0, 2)


def _check_end(codestream: bytes) -> None:
    if not codestream.rstrip(b"\0\xff").endswith(_END_MARKER):  # what pads it to even length
        raise ImageError(Reason.TRUNCATED, "the picture data ends before its end marker")


def _long_enough(part: bytes, size: int) -> bytes:
    if len(part) < size:
        raise ImageError(Reason.CORRUPT, "picture data without its frame header")
    return part


def _other_size() -> ImageError:
    return ImageError(Reason.CORRUPT, "the picture data is of another size than the header says")


def _cut() -> ImageError:
    return ImageError(Reason.TRUNCATED, "the DICOM file ends within its pixels")


_NATIVE = frozenset(uid.UncompressedTransferSyntaxes)
_JPEG2000 = frozenset(
    (
        *(uid.JPEG2000Lossless, uid.JPEG2000),
        *(uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K),
    )
)
_LOSSY = frozenset(
    (
        *(uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless),
        *(uid.JPEG2000, uid.HTJ2K),
    )
)
_CODECS: dict[str, Callable[[bytes, PixelFormat], np.ndarray]] = {
    **dict.fromkeys(uid.JPEGTransferSyntaxes, _decode_jpeg),
    **dict.fromkeys(uid.JPEGLSTransferSyntaxes, _decode_jpeg_ls),
    **dict.fromkeys(_JPEG2000, _decode_jpeg2000),
    uid.RLELossless: _decode_rle,
}
