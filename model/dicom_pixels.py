"""The pixels of a DICOM file as they are stored, of every transfer syntax that is read.

| transfer syntax | read by |
|---|---|
| implicit and explicit little endian, explicit big endian, deflated | NumPy |
| JPEG baseline, extended (8 and 12 bits), lossless | imagecodecs: libjpeg-turbo |
| JPEG-LS, lossless and near-lossless | imagecodecs: CharLS |
| JPEG 2000 and high-throughput JPEG 2000, lossless and lossy | imagecodecs: OpenJPEG |
| RLE | imagecodecs |
"""

import numpy as np
from pydicom import uid
from pydicom.encaps import generate_fragments

from model.dicom_codecs import CODECS, decode_codestream
from model.dicom_format import LUMA_FIRST, OF_JPEG2000, PixelFormat, known_uid
from model.dicom_header import DicomFile, ReadStream, invalid
from schemas.rejects import ImageError, Reason

_NATIVE = frozenset(uid.UncompressedTransferSyntaxes)
_DELIMITER = b"\xfe\xff\xdd\xe0"


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
    if syntax not in CODECS:
        known = known_uid(syntax)
        name = known.name if known.keyword else "a transfer syntax not known"
        raise ImageError(Reason.UNSUPPORTED_TRANSFER_SYNTAX, name)
    return _as_unsigned(decode_codestream(_codestream(dicom), syntax, pixel_format), pixel_format)


def _as_unsigned(cells: np.ndarray, pixel_format: PixelFormat) -> np.ndarray:
    if cells.dtype.kind == "i":
        size = pixel_format.bits_allocated // 8
        cells = cells.astype(f"i{size}").view(f"u{size}")
    if pixel_format.samples == 1 or pixel_format.photometric_interpretation in LUMA_FIRST:
        return cells[..., 0]
    return cells


def _native_cells(dicom: DicomFile, pixel_format: PixelFormat) -> np.ndarray:
    rows, columns, samples = pixel_format.rows, pixel_format.columns, pixel_format.samples
    if pixel_format.photometric_interpretation in (*OF_JPEG2000, "YBR_PARTIAL_420"):
        raise invalid("PhotometricInterpretation is none that this transfer syntax can have")
    halved = pixel_format.photometric_interpretation.endswith("_422")
    if halved and (columns % 2 or pixel_format.bits_allocated != 8):
        raise invalid("PhotometricInterpretation wants an even number of columns and 8 bits")
    order = "<" if dicom.little_endian else ">"
    cell = np.dtype(f"{order}u{pixel_format.bits_allocated // 8}")
    count = rows * columns * (2 if halved else samples)
    pixels, size = dicom.pixels, count * cell.itemsize
    if pixels.length is None or pixels.length < size:
        raise ImageError(Reason.CORRUPT, "fewer pixels than rows and columns say")
    in_words = cell.itemsize == 1 and pixels.vr == "OW" and order == ">"
    if pixels.start + size + (size % 2 if in_words else 0) > len(dicom.data):
        raise _cut()
    if in_words:
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


def _cut() -> ImageError:
    return ImageError(Reason.TRUNCATED, "the DICOM file ends within its pixels")
