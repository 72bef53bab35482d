"""Identity: what a header says of its image, from its first bytes, and nothing but that."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.uid import DeflatedExplicitVRLittleEndian

from model.dicom_identity import Identity, read_identity, read_references
from schemas.rejects import ImageError, Reason
from scripts.dicom_files import dicom_file, dicomdir_file

CELLS = np.zeros((4, 4), np.uint8)
HEADER = {
    "SOPInstanceUID": "1.2.3",
    "PatientID": "P7",
    "StudyDate": "20261126",
    "ViewPosition": "PA",
    "Modality": "DX",
}
FOUND = Identity("1.2.3", "P7", "2026-11-26", "PA", "DX", "MONOCHROME2")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of what writes wrong values


def identity_of(**attributes):
    return read_identity(dicom_file(CELLS, **HEADER | attributes), is_whole=True)


@pytest.mark.parametrize("syntax", uid.UncompressedTransferSyntaxes, ids=lambda s: s.keyword)
def test_read_identity_of_any_encoding_of_a_header(syntax):
    assert read_identity(dicom_file(CELLS, syntax, **HEADER), is_whole=True) == FOUND


def test_read_identity_of_absent_attributes_is_none():
    assert identity_of(**dict.fromkeys(HEADER), PhotometricInterpretation=None) == Identity(
        *[None] * 6
    )


@pytest.mark.parametrize(
    "field, attributes, expected",
    [
        ("sop_instance_uid", {"SOPInstanceUID": "Doe^Jane"}, None),
        ("sop_instance_uid", {"SOPInstanceUID": "1" * 65}, None),
        ("patient_id", {"PatientID": " 007 \r\n"}, "007"),
        ("patient_id", {"PatientID": "a\x1bb"}, "ab"),
        ("patient_id", {"PatientID": "Müller", "SpecificCharacterSet": "ISO_IR 192"}, "Müller"),
        ("patient_id", {"PatientID": "Müller", "SpecificCharacterSet": "ISO_IR 100"}, "Müller"),
        ("patient_id", {"PatientID": "  "}, None),
        ("study_date", {"StudyDate": "1992.03.04"}, "1992-03-04"),
        ("study_date", {"StudyDate": "20260230"}, None),
        ("study_date", {"StudyDate": "Jane"}, None),
        ("view_position", {"ViewPosition": "LL "}, "LL"),
        ("view_position", {"ViewPosition": "pa"}, "PA"),
        ("view_position", {"ViewPosition": "Doe, Jane"}, None),
        ("modality", {"Modality": "CT"}, "CT"),
        ("modality", {"Modality": "Jane's"}, None),
    ],
)
def test_read_identity_takes_of_a_value_what_it_should_be(field, attributes, expected):
    assert identity_of(**attributes) == dataclasses.replace(FOUND, **{field: expected})


def test_read_identity_needs_no_byte_of_what_follows():
    data = dicom_file(CELLS, **HEADER)
    end = data.index(b"(\x00\x10\x00US")  # Rows
    assert read_identity(data[: end + 8], is_whole=False) == FOUND


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
@given(share=st.floats(0, 1))
@settings(deadline=None, max_examples=60)
def test_read_identity_of_a_part_is_whole_or_an_error(syntax, share):
    data = dicom_file(CELLS, syntax, **HEADER)
    try:
        assert read_identity(data[: int(share * len(data))], is_whole=False) == FOUND
    except ImageError as error:
        assert error.reason in (Reason.TRUNCATED, Reason.NOT_AN_IMAGE)


@given(data=st.binary(max_size=300))
@settings(deadline=None, max_examples=100)
def test_read_identity_of_any_bytes_is_an_identity_or_an_error(data):
    try:
        found = read_identity(b"\0" * 128 + b"DICM" + data, is_whole=True)
        assert found.modality is None or found.modality.isascii()
    except ImageError:
        pass


# DICOMDIR


def test_read_references_gives_images_once_and_counts_others():
    images = [["A", "IM1"], "IM2", ["A", "IM1"]]
    data = dicomdir_file(images, others=[["A", "SR1"]])
    assert read_references(data) == (["A/IM1", "IM2"], 1)


@pytest.mark.parametrize("undefined_length", [False, True])
def test_read_references_of_a_part_is_an_error(undefined_length):
    data = dicomdir_file(["IM1", "IM2"], undefined_length=undefined_length)
    assert read_references(data) == (["IM1", "IM2"], 0)
    for end in range(len(data) - 8 * undefined_length):  # what delimits the end may be missing
        with pytest.raises(ImageError):
            read_references(data[:end])


@pytest.mark.parametrize(
    "name",
    ["..", ["A", "..", "..", "X"], "/etc/passwd", ["", "etc", "passwd"], ["A", "."], ["A/../.."]],
)
def test_read_references_outside_the_folder_is_refused(name):
    with pytest.raises(ImageError, match="references a file outside its folder"):
        read_references(dicomdir_file([["A", "IM1"], name]))


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", Reason.TRUNCATED),
        (dicom_file(CELLS), Reason.NOT_AN_IMAGE),
        (b"x" * 999, Reason.CORRUPT),
    ],
    ids=["nothing", "an image", "no DICOM"],
)
def test_read_references_of_no_dicomdir_is_an_error(data, reason):
    with pytest.raises(ImageError) as caught:
        read_references(data)
    assert caught.value.reason is reason
