"""Decoders of compressed DICOM pixels: one frame of each transfer syntax.

The sizes that a codestream gives of itself are compared with the header's before it is decoded.
JPEG 2000 is decoded at full size: at a reduced one it is up to 21 grey levels off at edges, and 3
are the limit (`benchmarks/README.md`).
"""

import math
import struct
from collections.abc import Callable

import imagecodecs
import numpy as np
from pydicom import uid

from model.decoding import MAX_SCANS, jpeg_segments, within_limit
from model.dicom_format import OF_JPEG2000, PixelFormat
from model.dicom_header import invalid
from schemas.rejects import ImageError, Reason

_END_MARKER = b"\xff\xd9"
_J2K_START = b"\xff\x4f\xff\x51"
_J2K_SIZE = struct.Struct(">HH8LHB")
_JPEG_FRAME = struct.Struct(">BHHB")
_SOF_LS, _SOS, _APP0, _APP14 = 0xF7, 0xDA, 0xE0, 0xEE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def decode_codestream(codestream: bytes, syntax: str, pixel_format: PixelFormat) -> np.ndarray:
    """Returns the samples of one frame: `(rows, columns, samples)`, 8 or 16 bits, maybe signed.

    Args:
      codestream: All of the frame.
      syntax: One of `CODECS`.
      pixel_format: What it must be.

    Raises:
      ImageError: It does not decode, or is another.
    """
    if pixel_format.photometric_interpretation in OF_JPEG2000 and syntax not in _JPEG2000:
        raise invalid("PhotometricInterpretation is none that this transfer syntax can have")
    try:
        cells = CODECS[syntax](codestream, pixel_format)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        # The errors of imagecodecs, of all kinds.
        raise ImageError(Reason.CORRUPT, "the picture data does not decode") from error
    shape = (pixel_format.rows, pixel_format.columns, pixel_format.samples)
    if cells.size != math.prod(shape):
        raise _other_size()
    return (
        _clamped(cells, pixel_format).reshape(shape) if syntax in _LOSSY else cells.reshape(shape)
    )


def _clamped(cells: np.ndarray, pixel_format: PixelFormat) -> np.ndarray:
    """Keeps what a lossy decoder makes of white from running over into black."""
    bits = pixel_format.bits_stored
    if pixel_format.high_bit != bits - 1:
        return cells
    if cells.dtype.kind == "i":
        return np.clip(cells, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    return np.minimum(cells, (1 << bits) - 1)


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
CODECS: dict[str, Callable[[bytes, PixelFormat], np.ndarray]] = {
    **dict.fromkeys(uid.JPEGTransferSyntaxes, _decode_jpeg),
    **dict.fromkeys(uid.JPEGLSTransferSyntaxes, _decode_jpeg_ls),
    **dict.fromkeys(_JPEG2000, _decode_jpeg2000),
    uid.RLELossless: _decode_rle,
}
"""What decodes each transfer syntax."""
