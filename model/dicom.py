"""DICOM into grey: which files are DICOM, and the order in which one is decoded.

The order is that of the standard (PS3.3 C.11, PS3.4 N.2): pixels, modality transform, VOI
transform, presentation. What is read, and what becomes of it:

| In the file | What happens |
|---|---|
| `DICM` at byte 128; or group 0002 or 0008 at the start, as older files have it | read |
| the extra `dicom` is not installed | `unsupported_format` |
| a structured report, a presentation state, key images, a document | `not_an_image` |
| an image object without its pixels | `no_pixel_data` |
| more than one frame | `multi_frame`; `unsupported_format` for an enhanced object of one |
| a transfer syntax that `model.dicom_pixels` does not list | `unsupported_transfer_syntax` |
| 1-bit, 32-bit and floating-point pixels, other colour spaces | `unsupported_format` |
| a Modality other than `RADIOGRAPHS`, which it may lack | `other_modality` |
| what is needed for the pixels is missing or against the standard | `invalid_header` |
| an end that is missing; fewer pixels than rows and columns, an undecodable codestream | \
`truncated`; `corrupt` |
| limits of pixels and sides as for PNG, checked before decoding | `too_many_pixels` |
| bits above BitsStored, overlays | ignored |

`model.dicom_grey` says what becomes of the values of pixels. Messages quote nothing of the
header but sizes and numbers of bits.
"""

import re

from PIL import Image

from schemas.rejects import ImageError, Reason

RADIOGRAPHS = ("CR", "DX", "RG")
"""Modalities of projection radiographs: computed, digital, and film that was scanned."""

_PREFIX = b"DICM"
_PREAMBLE_BYTES = 128
_REMEDY = "DICOM; to read it: pip install 'prescreen[dicom]'"
_RULE = f"a DICOM image of another modality than {', '.join(RADIOGRAPHS)}"

# Without a preamble, a file is taken for DICOM where its first element is one of the first of
# the file meta information (0002) or of the dataset (0008), with the length such a one can have.
_BARE = re.compile(
    rb"\x02\x00[\x00-\x02]\x00(?:UL\x04\x00|OB\x00\x00|UI.\x00)"
    rb"|\x08\x00[\x00-\x18]\x00(?:UL\x04\x00|(?:CS|UI|DA|TM|LO|SH).\x00)"
    rb"|\x08\x00\x00\x00\x04\x00\x00\x00.{4}\x08\x00"
    rb"|\x08\x00[\x01-\x18]\x00[\x00-\x40]\x00{3}[ -~\x00]{4}",
    re.DOTALL,
)


def is_dicom(data: bytes) -> bool:
    """Returns whether a file is DICOM by its content; needs no more than its first 132 bytes."""
    return data.startswith(_PREFIX, _PREAMBLE_BYTES) or _BARE.match(data) is not None


def decode_dicom(data: bytes) -> Image.Image:
    """Returns the picture of a DICOM file, mode `L`, by the module's table. Safe in threads.

    Args:
      data: All of the file.

    Raises:
      ImageError: The image cannot be used.
    """
    try:
        # An extra, and half a second to import: only where there is a DICOM file.
        from model.dicom_format import read_pixel_format
        from model.dicom_grey import to_grey
        from model.dicom_header import read_dicom
        from model.dicom_pixels import read_cells
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("pydicom", "imagecodecs"):
            raise
        raise ImageError(Reason.UNSUPPORTED_FORMAT, _REMEDY) from error
    dicom = read_dicom(data)
    pixel_format = read_pixel_format(dicom)
    if dicom.elements.text("Modality").upper() not in ("", *RADIOGRAPHS):
        raise ImageError(Reason.OTHER_MODALITY, _RULE)
    cells = read_cells(dicom, pixel_format)
    return Image.fromarray(to_grey(cells, pixel_format, dicom.elements))
