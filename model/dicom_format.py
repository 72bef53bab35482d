"""How the pixels of a DICOM file are stored, as its header says it; PS3.3 C.7.6.3."""

from dataclasses import dataclass

from pydicom import uid
from pydicom.config import IGNORE
from pydicom.datadict import tag_for_keyword

from model.decoding import check_size
from model.dicom_header import DicomFile, invalid
from schemas.rejects import ImageError, Reason

LUMA_FIRST = ("YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420")
"""Colour whose first sample is its luma."""
OF_JPEG2000 = ("YBR_ICT", "YBR_RCT")
"""What JPEG 2000 makes of RGB inside; its decoder gives RGB back."""

_SAMPLES = {
    **dict.fromkeys(("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"), 1),
    **dict.fromkeys((*LUMA_FIRST, "RGB", *OF_JPEG2000), 3),
}


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """How pixels are stored.

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
        kind = known_uid(class_uid).keyword
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


def known_uid(text: str) -> uid.UID:
    """Returns a UID with the names that the standard gave it; unknown, it may be any text."""
    return uid.UID(text, IGNORE)
