"""DICOM into grey: which files are DICOM, and the order in which one is decoded.

The order is that of the standard (PS3.3 C.11, PS3.4 N.2): pixels, modality transform, VOI
transform, presentation. What is read, and what becomes of it:

| In the file | What happens |
|---|---|
| `DICM` at byte 128; or group 0002 or 0008 at the start, as older files have it | read |
| the extra `dicom` is not installed | `decoder_missing` |
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
| a view from the side, text in the pixels | a quality code; broken, it says nothing |

`model.dicom_grey` says what becomes of the values of pixels. Messages quote nothing of the
header but sizes and numbers of bits, and codes nothing at all.
"""

import contextlib
import re
import typing

from PIL import Image

from model.quality import is_lateral
from schemas.quality import Quality
from schemas.rejects import ImageError, Reason

if typing.TYPE_CHECKING:
    from model.dicom_header import Elements

RADIOGRAPHS = ("CR", "DX", "RG")
"""Modalities of projection radiographs: computed, digital, and film that was scanned."""

_SIDE_VIEWS = frozenset(
    (
        *("399067008", "R-102CD"),  # lateral
        *("399173006", "R-10236"),  # left lateral
        *("399198007", "R-10232"),  # right lateral
        *("399260004", "R-10224"),  # medial-lateral
        *("399352003", "R-10228"),  # lateral-medial
    )
)
"""Views from the side in CID 4010 "DX View", as `pydicom.sr.codedict` of pydicom 3.0 has it: each
by SNOMED CT, and by the older SNOMED RT, which files call by several names."""

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


def decode_dicom(data: bytes) -> tuple[Image.Image, tuple[Quality, ...]]:
    """Returns the picture of a DICOM file, and the quality codes that its header gives.

    The picture is of mode `L`, by the module's table. Safe in threads.

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
        raise ImageError(Reason.DECODER_MISSING, _REMEDY) from error
    dicom = read_dicom(data)
    pixel_format = read_pixel_format(dicom)
    if dicom.elements.text("Modality").upper() not in ("", *RADIOGRAPHS):
        raise ImageError(Reason.OTHER_MODALITY, _RULE)
    cells = read_cells(dicom, pixel_format)
    grey = Image.fromarray(to_grey(cells, pixel_format, dicom.elements))
    return grey, _header_codes(dicom.elements)


def _header_codes(elements: "Elements") -> tuple[Quality, ...]:
    found = []
    for code, holds in _CHECKS.items():
        # The pixels are good without what is broken here.
        with contextlib.suppress(ImageError):
            if holds(elements):
                found.append(code)
    return tuple(found)


def _is_from_the_side(elements: "Elements") -> bool:
    if view_position := elements.text("ViewPosition"):
        return is_lateral(view_position)
    view = elements.first_item("ViewCodeSequence")
    return view is not None and view.text("CodeValue") in _SIDE_VIEWS


def _has_text_burned_in(elements: "Elements") -> bool:
    return elements.text("BurnedInAnnotation").upper() == "YES"


_CHECKS = {
    Quality.LATERAL: _is_from_the_side,
    Quality.BURNED_IN_ANNOTATION: _has_text_burned_in,
}
