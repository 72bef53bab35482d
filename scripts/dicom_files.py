"""DICOM files of any pixels, header and transfer syntax, for tests and fuzzing."""

import io
import struct
from collections.abc import Iterable

import imagecodecs
import numpy as np
from pydicom import Dataset, FileDataset, dcmwrite, uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate

CANARY = "CANARY^PATIENT"
"""Stands where a patient would be named; must show up nowhere."""

_STUDY_UID = "2.25.1"
_HTJ2K = (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
_LOSSY_JPEG_LS_ERROR = 1


def dicom_file(cells: np.ndarray, syntax: str = uid.ExplicitVRLittleEndian, **attributes) -> bytes:
    """Returns a file of an image.

    Args:
      cells: uint8, uint16, int8 or int16, `(rows, columns)` or `(rows, columns, 3)`: the values
        as they are stored.
      syntax: UID of the transfer syntax.
      **attributes: By keyword, instead of what follows from the cells; None leaves one out.
    """
    dataset = FileDataset(None, {}, preamble=bytes(128))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = uid.ComputedRadiographyImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = _STUDY_UID
    bits = 8 * cells.itemsize
    header = {
        "SOPClassUID": uid.ComputedRadiographyImageStorage,
        "SOPInstanceUID": _STUDY_UID,
        "PatientName": CANARY,
        "PatientID": CANARY,
        "Rows": cells.shape[0],
        "Columns": cells.shape[1],
        "SamplesPerPixel": 3 if cells.ndim == 3 else 1,
        "PhotometricInterpretation": "RGB" if cells.ndim == 3 else "MONOCHROME2",
        "PlanarConfiguration": 0 if cells.ndim == 3 else None,
        "BitsAllocated": bits,
        "BitsStored": bits,
        "PixelRepresentation": int(cells.dtype.kind == "i"),
    } | attributes
    header.setdefault("HighBit", header["BitsStored"] - 1)
    for keyword, value in header.items():
        if value is not None:
            setattr(dataset, keyword, value)
    if "PixelData" not in header:
        dataset.PixelData = _pixel_data(cells, syntax, header["BitsStored"])
        dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
        if syntax not in uid.UncompressedTransferSyntaxes:
            dataset["PixelData"].VR = "OB"
    stream = io.BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def dicomdir_file(
    images: Iterable[str | list[str]], others: Iterable = (), undefined_length: bool = False
) -> bytes:
    """Returns a DICOMDIR of one patient.

    Args:
      images: Names that its records of images reference, by component.
      others: Those of structured reports.
      undefined_length: Whether a delimiter ends the records, and each of them.
    """
    dataset = FileDataset(None, {}, preamble=bytes(128))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = uid.MediaStorageDirectoryStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = _STUDY_UID
    records = [_record("PATIENT", PatientName=CANARY, PatientID=CANARY)]
    records += [_record("IMAGE", ReferencedFileID=name) for name in images]
    records += [_record("SR DOCUMENT", ReferencedFileID=name) for name in others]
    for record in records:
        record.is_undefined_length_sequence_item = undefined_length
    dataset.DirectoryRecordSequence = records
    dataset["DirectoryRecordSequence"].is_undefined_length = undefined_length
    stream = io.BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def _record(kind: str, **attributes) -> Dataset:
    record = Dataset()
    record.DirectoryRecordType = kind
    for keyword, value in attributes.items():
        setattr(record, keyword, value)
    return record


def lookup_table(
    entries: np.ndarray, first: int = 0, bits: int = 16, order: str = "<"
) -> list[Dataset]:
    """Returns the value of a Modality or VOI LUT sequence of one table of 16-bit entries.

    Args:
      entries: 0 to 65535.
      first: The value that the first of them is for.
      bits: Of an entry.
      order: Of the bytes of a word, `<` or `>`.
    """
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", entries.astype(f"{order}u2").tobytes())
    return [item]


def _pixel_data(cells: np.ndarray, syntax: str, bits: int) -> bytes:
    if syntax in uid.UncompressedTransferSyntaxes:
        order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
        data = cells.astype(cells.dtype.newbyteorder(order)).tobytes()
        return data + bytes(len(data) % 2)
    return encapsulate([_codestream(cells, syntax, bits)])


def _codestream(cells: np.ndarray, syntax: str, bits: int) -> bytes:
    plain = cells.view(f"u{cells.itemsize}") & ((1 << bits) - 1)
    if syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1):
        colour = {"colorspace": "RGB", "outcolorspace": "RGB"} if cells.ndim == 3 else {}
        return imagecodecs.jpeg8_encode(plain, lossless=True, bitspersample=bits, **colour)
    if syntax in (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit):
        return imagecodecs.jpeg8_encode(plain, level=100, bitspersample=bits)
    if syntax in uid.JPEGLSTransferSyntaxes:
        error = _LOSSY_JPEG_LS_ERROR if syntax == uid.JPEGLSNearLossless else 0
        return imagecodecs.jpegls_encode(plain, level=error)
    if syntax in _HTJ2K:
        return imagecodecs.htj2k_encode(cells)
    if syntax in uid.JPEG2000TransferSyntaxes:
        exact = syntax == uid.JPEG2000Lossless
        options = {"reversible": True} if exact else {"reversible": False, "level": 70}
        return imagecodecs.jpeg2k_encode(cells, codecformat="j2k", bitspersample=bits, **options)
    if syntax == uid.RLELossless:
        return _run_lengths(plain)
    raise ValueError(f"syntax must be one that can be written here. Received: syntax={syntax}.")


def _run_lengths(cells: np.ndarray) -> bytes:
    """Returns a segment a byte of a pixel, the highest first, sample after sample; PS3.5 G."""
    size = cells.itemsize
    samples = [cells] if cells.ndim == 2 else list(np.moveaxis(cells, 2, 0))
    planes = [
        np.ascontiguousarray((sample >> (8 * byte) & 255).astype(np.uint8))
        for sample in samples
        for byte in reversed(range(size))
    ]
    segments = [b"".join(imagecodecs.packbits_encode(row) for row in plane) for plane in planes]
    segments = [segment + bytes(len(segment) % 2) for segment in segments]
    starts = [64 + sum(map(len, segments[:index])) for index in range(len(segments))]
    header = struct.pack("<16L", len(segments), *starts, *[0] * (15 - len(segments)))
    return header + b"".join(segments)
