"""What a manifest says of a DICOM file, from its header: which image it is, and of whom.

These attributes and no others leave the header; a code that has not the form of one, and a
date that is none, do not either.
"""

import datetime
import re
from collections.abc import Iterable
from dataclasses import dataclass

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement

from model.dicom import is_dicom
from model.dicom_header import Elements, ReadStream, invalid, naming_errors, read_attributes
from schemas.rejects import ImageError, Reason

_TAGS = frozenset(
    tag_for_keyword(keyword)
    for keyword in (
        *("SOPInstanceUID", "StudyDate", "Modality", "PatientID", "ViewPosition"),
        "PhotometricInterpretation",
    )
)
_UID = re.compile(r"[0-9.]{1,64}")
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")
MODALITIES = frozenset(
    (
        *("AR", "ASMT", "AU", "BDUS", "BI", "BMD", "CFM", "CR", "CT", "CTPROTOCOL", "DG", "DMS"),
        *("DOC", "DX", "ECG", "EEG", "EMG", "EOG", "EPS", "ES", "FID", "GM", "HC", "HD", "IO"),
        *("IOL", "IVOCT", "IVUS", "KER", "KO", "LEN", "LS", "M3D", "MG", "MR", "NM", "OAM", "OCT"),
        *("OP", "OPM", "OPT", "OPTBSV", "OPTENF", "OPV", "OSS", "OT", "PA", "PLAN", "POS", "PR"),
        *("PT", "PX", "REG", "RESP", "RF", "RG", "RTDOSE", "RTIMAGE", "RTINTENT", "RTPLAN"),
        *("RTRAD", "RTRECORD", "RTSEGANN", "RTSTRUCT", "RWV", "SEG", "SM", "SMR", "SR", "SRF"),
        *("STAIN", "TEXTUREMAP", "TG", "US", "VA", "XA", "XAPROTOCOL", "XC"),
    )
)
"""Defined terms of PS3.3 C.7.3.1.1.1; a file may hold any other."""

_DATE = re.compile(r"(\d{4})\.?(\d\d)\.?(\d\d)")  # with points: as before 1993

_OUTSIDE = re.compile(r"[/\\\0]")
"""What no component of a referenced file's name may hold."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Attributes of an image; None where the file does not say, or says no such thing.

    Attributes:
      sop_instance_uid: Names the image in all the world.
      patient_id: Names the patient in the hospital, as far as it is printable.
      study_date: `YYYY-MM-DD`.
      view_position: A code such as `PA`.
      modality: A code such as `DX`.
      photometric_interpretation: A code such as `MONOCHROME2`.
    """

    sop_instance_uid: str | None
    patient_id: str | None
    study_date: str | None
    view_position: str | None
    modality: str | None
    photometric_interpretation: str | None


def read_identity(head: bytes, *, is_whole: bool) -> Identity:
    """Returns what the header of a DICOM file says of it.

    Args:
      head: The file, from its start, up to Photometric Interpretation (0028,0004).
      is_whole: Whether that is all of the file.

    Raises:
      ImageError: It is no DICOM, damaged, or ends before that: `truncated`, which more of the
        file may mend. Its detail quotes nothing of the header.
    """
    if not is_dicom(head):
        raise ImageError(Reason.NOT_AN_IMAGE, "the content is no DICOM")
    elements = read_attributes(head, _TAGS, is_whole=is_whole)
    uid = elements.text("SOPInstanceUID")
    return Identity(
        uid if _UID.fullmatch(uid) else None,
        _printable(elements, "PatientID"),
        _date(elements.text("StudyDate")),
        _code(elements.text("ViewPosition")),
        _code(elements.text("Modality")),
        _code(elements.text("PhotometricInterpretation")),
    )


def read_references(data: bytes) -> tuple[list[str], int]:
    """Returns the files that a DICOMDIR references as images, and how many as something else.

    Args:
      data: All of the DICOMDIR.

    Returns:
      Paths relative to its folder, with `/`, in its order, each once; and a number of records.

    Raises:
      ImageError: It is none, is damaged, or names a file outside its folder.
    """
    # An element takes some reads and at least eight bytes.
    with naming_errors(stream := ReadStream(data, max_reads=1000 + len(data)), len(data)):
        dataset = pydicom.dcmread(stream, specific_tags=["DirectoryRecordSequence"])
        sequence = dataset.get_item("DirectoryRecordSequence")
        if isinstance(sequence, RawDataElement) and len(sequence.value) < sequence.length:
            raise EOFError  # which pydicom says nothing of
        records = [
            (str(record.DirectoryRecordType), _components(record.get("ReferencedFileID")))
            for record in dataset.get("DirectoryRecordSequence", ())
        ]
    if not records:
        raise ImageError(Reason.NOT_AN_IMAGE, "a file without directory records")
    named = [(kind, name) for kind, name in records if name]
    images = [_inside(name) for kind, name in named if kind == "IMAGE"]
    return list(dict.fromkeys(images)), len(named) - len(images)


def _components(name: str | Iterable | None) -> list[str]:
    """Returns the parts of a name, which in a damaged file may be of any type."""
    return [name] if isinstance(name, str) else [str(part) for part in name or ()]


def _inside(parts: list[str]) -> str:
    if any(part in ("", ".", "..") or _OUTSIDE.search(part) for part in parts):
        raise invalid("a DICOMDIR that references a file outside its folder")
    return "/".join(parts)


def _printable(elements: Elements, keyword: str) -> str | None:
    value, _ = elements.binary(keyword)
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = value.decode("latin-1")  # never two values to one text
    return "".join(filter(str.isprintable, text)).strip() or None


def _code(text: str) -> str | None:
    return text.upper() if _CODE.fullmatch(text.upper()) else None


def _date(text: str) -> str | None:
    found = _DATE.fullmatch(text)
    try:
        return datetime.date(*map(int, found.groups())).isoformat() if found else None
    except ValueError:
        return None
