"""What an object for the reading room takes over from the image that it is about.

A PACS files an object by these attributes, so they stay the bytes they are, under the character
set of the image. Nothing is made up: what the image does not say is empty or absent, and an
image that says something against the standard gets no object.
"""

import datetime
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from pydicom.charset import (
    STAND_ALONE_ENCODINGS,
    convert_encodings,
    decode_bytes,
    default_encoding,
    python_encoding,
)
from pydicom.datadict import dictionary_VR, tag_for_keyword

from model.dicom_header import Elements, invalid, read_attributes, silenced

PATIENT_AND_STUDY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
)
"""Attributes of type 2: there in every object, empty where the image says nothing."""

ALSO_KNOWN = (
    *("IssuerOfPatientID", "PatientIdentityRemoved", "DeidentificationMethod"),
    "StudyDescription",
)
"""In an object where they are in the image."""

OF_IMAGES = ("BodyPartExamined", "PatientOrientation", "Laterality", "BurnedInAnnotation")

_REFERENCE = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
"""Without any of these nothing can refer to the image."""

_TAGS = frozenset(
    tag_for_keyword(keyword)
    for keyword in (
        *("SpecificCharacterSet", *_REFERENCE),
        *(*PATIENT_AND_STUDY, *ALSO_KNOWN, *OF_IMAGES),
    )
)

_UID = re.compile(r"(?=.{1,64}$)(?:0|[1-9]\d*)(?:\.(?:0|[1-9]\d*))+", re.ASCII)
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")
_DATE = re.compile(r"\d{8}", re.ASCII)
_TIME = re.compile(r"([01]\d|2[0-3])(?:[0-5]\d(?:(?:[0-5]\d|60)(?:\.\d{1,6})?)?)?", re.ASCII)
_ENUMERATED = {
    "PatientSex": ("M", "F", "O"),
    "Laterality": ("R", "L"),
    "BurnedInAnnotation": ("YES", "NO"),
    "PatientIdentityRemoved": ("YES", "NO"),
}
_MOST_CHARACTERS = {"SH": 16, "LO": 64}
_GROUPS, _COMPONENTS, _GROUP_CHARACTERS = 3, 5, 64
"""Most of a person's name, PS3.5 6.2.1: groups, components of one, characters of one."""

_MANY = {"PatientOrientation": 2, "DeidentificationMethod": 1000}
"""Values of an attribute, where there may be more than one."""

_CARET = {ord("^")}


@dataclass(frozen=True, slots=True)
class SourceHeader:
    """An image as objects about it name it.

    Attributes:
      sop_class, sop_instance, study, series: UIDs.
      character_set: Defined terms as the image has them, empty without one.
      values: Bytes by keyword, without padding, of each attribute that says something.
    """

    sop_class: str
    sop_instance: str
    study: str
    series: str
    character_set: tuple[str, ...]
    values: dict[str, bytes]

    @property
    def encodings(self) -> str | list[str]:
        """The character set as pydicom knows it."""
        return (
            convert_encodings(list(self.character_set)) if self.character_set else default_encoding
        )


def read_source_header(data: bytes) -> SourceHeader:
    """Returns what objects take over from a DICOM file.

    Args:
      data: All of the file.

    Raises:
      ImageError: It lacks a UID of the reference, or holds a value against the standard. The
        detail names the attribute, and quotes nothing.
    """
    elements = read_attributes(data, _TAGS, is_whole=True)
    reference = [_uid(elements, keyword) for keyword in _REFERENCE]
    terms = _character_set(elements)
    values = {}
    for keyword in (*PATIENT_AND_STUDY, *ALSO_KNOWN, *OF_IMAGES):
        value = elements.binary(keyword)[0].strip(b"\0").rstrip(b" \0")
        if value:
            _check(keyword, value, terms)
            values[keyword] = value
    if "DeidentificationMethod" not in values:
        # It would have to say how, in codes that are not read here.
        values.pop("PatientIdentityRemoved", None)
    return SourceHeader(*reference, terms, values)


def _uid(elements: Elements, keyword: str) -> str:
    uid = elements.text(keyword)
    if not _UID.fullmatch(uid):
        raise invalid(f"{keyword} is missing or no UID")
    return uid


def _character_set(elements: Elements) -> tuple[str, ...]:
    value = elements.binary("SpecificCharacterSet")[0].strip(b"\0 ")
    terms = tuple(term.decode("ascii", "replace").strip() for term in value.split(b"\\"))
    if terms == ("",):
        return ()
    alone = len(terms) > 1 and not set(terms).isdisjoint(STAND_ALONE_ENCODINGS)
    if alone or not set(terms) <= python_encoding.keys():
        raise invalid("SpecificCharacterSet names no known ones")
    return terms


def _check(keyword: str, value: bytes, terms: tuple[str, ...]) -> None:
    """Raises what is wrong with a value; one with several is checked one by one."""
    parts = [value]
    if most := _MANY.get(keyword):
        parts = value.split(b"\\")
        if len(parts) > most or (keyword == "PatientOrientation" and len(parts) < most):
            raise invalid(f"{keyword} has another number of values")
    is_valid = _RULES[dictionary_VR(keyword)]
    for part in parts:
        text = _decode(keyword, part.strip(b" "), terms)
        if not is_valid(text) or text not in _ENUMERATED.get(keyword, (text,)):
            raise invalid(f"{keyword} is against the standard")


def _decode(keyword: str, value: bytes, terms: tuple[str, ...]) -> str:
    """Returns a text, without which an object could not be shown as the image is."""
    if dictionary_VR(keyword) in ("CS", "DA", "TM") or not terms:
        try:
            return value.decode("ascii")
        except UnicodeDecodeError:
            raise invalid(f"{keyword} is not in its character set") from None
    with silenced():
        text = decode_bytes(value, convert_encodings(list(terms)), _CARET)
    if "\ufffd" in text:
        raise invalid(f"{keyword} is not in its character set")
    return text


def _is_date(text: str) -> bool:
    try:
        return bool(_DATE.fullmatch(text) and datetime.datetime.strptime(text, "%Y%m%d"))
    except ValueError:
        return False


def _is_printed(text: str) -> bool:
    return not any(letter == "\\" or unicodedata.category(letter) == "Cc" for letter in text)


def _is_name(text: str) -> bool:
    groups = text.split("=")
    return (
        _is_printed(text)
        and len(groups) <= _GROUPS
        and all(
            len(group) <= _GROUP_CHARACTERS and group.count("^") < _COMPONENTS for group in groups
        )
    )


def _is_short(vr: str) -> Callable[[str], bool]:
    return lambda text: len(text) <= _MOST_CHARACTERS[vr] and _is_printed(text)


_RULES: dict[str, Callable[[str], bool]] = {
    "CS": lambda text: _CODE.fullmatch(text) is not None,
    "DA": _is_date,
    "TM": lambda text: _TIME.fullmatch(text) is not None,
    "SH": _is_short("SH"),
    "LO": _is_short("LO"),
    "PN": _is_name,
}
"""By value representation."""
