"""Listing DICOM: a row an image, with what its header says of it, and nothing else of it."""

import csv
import tarfile

import numpy as np
import pytest
from click.testing import CliRunner

from jobs.manifest import manifest_command
from model.object_store import ObjectFolder
from pipeline import dicom_listing
from pipeline.hash_key import load_hash_key
from pipeline.listing import Listing, list_images
from schemas.errors import InputError
from scripts.dicom_files import CANARY, dicom_file, dicomdir_file
from tests.gcs import BUCKET

CELLS = np.zeros((4, 4), np.uint8)
COLUMNS = "image_id,uri,patient_id,study_date,view_position,modality,photometric_interpretation"


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A folder to fill, which is the working directory too."""
    folder = tmp_path / "archive"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def header_of(number, **attributes):
    header = {
        "SOPInstanceUID": f"1.2.{number}",
        "PatientID": f"P{number}",
        "StudyDate": "20261126",
        "ViewPosition": "PA",
        "Modality": "DX",
    }
    return dicom_file(CELLS, **header | attributes)


def write(folder, **files):
    for name, data in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def rows_of(manifest):
    with open(manifest, newline="") as file:
        assert file.readline().strip() == COLUMNS
        return [tuple(row) for row in csv.reader(file)]


def row(number, uri, *, modality="DX"):
    return (f"1.2.{number}", uri, f"P{number}", "2026-11-26", "PA", modality, "MONOCHROME2")


def test_list_dicom_names_and_content_are_listed_by_their_headers(archive):
    files = {"a.dcm": 1, "b.DICOM": 2, "IM0001": 3, "1.2.840.77": 4, "c/I1": 5}
    for name, number in files.items():
        write(archive, **{name: header_of(number, Modality="CR")})
    write(archive, **{"x.png": b"", "README": b"text", "empty": b"", "y.txt": header_of(9)})
    assert list_images(["."], output="m.csv", dicom=True) == Listing(6, 3)
    assert rows_of("m.csv") == [
        row(4, "1.2.840.77", modality="CR"),
        row(3, "IM0001", modality="CR"),
        row(1, "a.dcm", modality="CR"),
        row(2, "b.DICOM", modality="CR"),
        ("x.png", "x.png", "", "", "", "", ""),
        row(5, "c/I1", modality="CR"),
    ]


def test_list_dicom_other_modalities_and_copies_are_left_out_and_counted(archive):
    kinds = {"a": "CT", "b": "MR", "c": "CT", "d": "DX", "e": "RG", "f": "PR", "h": "DOE"}
    for number, (name, modality) in enumerate(kinds.items()):
        write(archive, **{name: header_of(number, Modality=modality)})
    write(archive, z=header_of(3), z2=header_of(3, PatientID="other"), g=header_of(8, Modality=""))
    listing = list_images(["."], output="m.csv", dicom=True)
    assert listing == Listing(3, 7, {"CT": 2, "MR": 1, "PR": 1, "other": 1}, copies=2)
    assert [cells[:3] for cells in rows_of("m.csv")] == [
        ("1.2.3", "d", "P3"),
        ("1.2.4", "e", "P4"),
        ("1.2.8", "g", "P8"),
    ]


def test_list_dicom_files_whose_header_says_too_little_stay_under_their_paths(archive):
    good = header_of(1)
    write(archive, **{"1.2.1": good[:400], "cut.dcm": good[:300], "no.dcm": b"text"})
    write(archive, **{"pipe": header_of(2, SOPInstanceUID=None), "whole": good})
    (archive / "folder.dcm").symlink_to(archive)
    assert list_images(["."], output="m.csv", dicom=True) == Listing(6, 0, without_header=5)
    assert [cells[:3] for cells in rows_of("m.csv")] == [
        ("./1.2.1", "1.2.1", ""),
        *((name, name, "") for name in ("cut.dcm", "folder.dcm", "no.dcm", "pipe")),
        ("1.2.1", "whole", "P1"),
    ]


@pytest.mark.filterwarnings("ignore::UserWarning")  # of what writes so long a value
def test_list_dicom_reads_no_more_than_it_needs(archive, monkeypatch):
    asked = []
    real = dicom_listing.read_start
    monkeypatch.setattr(
        dicom_listing, "read_start", lambda path, size, _: asked.append(size) or real(path, size)
    )
    long = {"InstitutionAddress": "x" * 1000, "AdmittingDiagnosesDescription": ["y" * 64] * 1200}
    write(archive, **{"a.png": b"", "b.txt": header_of(2)})
    write(archive, short=header_of(1), long=header_of(3, **long))
    assert list_images(["."], output="m.csv", dicom=True) == Listing(3, 1)
    assert sorted(asked) == [64 * 1024, 64 * 1024, 1024 * 1024]
    assert [cells[0] for cells in rows_of("m.csv")] == ["a.png", "1.2.3", "1.2.1"]


def test_list_dicom_of_many_files_keeps_their_order(archive):
    for number in range(200):
        write(archive, **{f"{number:03d}": header_of(number)})
    assert list_images(["."], output="m.csv", dicom=True) == Listing(200, 0)
    assert rows_of("m.csv") == [row(number, f"{number:03d}") for number in range(200)]


def test_list_dicom_members_of_archives_are_listed_by_name_alone(archive):
    write(archive, **{"a.dcm": header_of(1), "b": header_of(2)})
    with tarfile.open(archive / "x.tar", "w") as file:
        file.add("a.dcm")
        file.add("b")
    assert list_images(["x.tar"], output="m.csv", dicom=True) == Listing(1, 1, without_header=1)
    assert rows_of("m.csv")[0][:3] == ("x.tar#a.dcm", "x.tar#a.dcm", "")


def test_list_dicom_hashes_ids_under_the_key(archive, tmp_path):
    write(archive, a=header_of(1), b=header_of(2, PatientID=None), **{"c.dcm": b"", "d.png": b""})
    key_file = str(tmp_path / "key")
    first = list_images(["."], output="m.csv", dicom=True, hash_key=key_file)
    assert first == Listing(4, 0, without_header=1, new_key=True)
    again = list_images(["."], output="again.csv", dicom=True, hash_key=key_file)
    assert not again.new_key
    assert rows_of("m.csv") == rows_of("again.csv")
    hashed = load_hash_key(key_file).hashed
    known = ("2026", "PA", "DX", "MONOCHROME2")
    assert rows_of("m.csv") == [
        (hashed("1.2.1"), "a", hashed("P1"), *known),
        (hashed("1.2.2"), "b", "", *known),
        (hashed("c.dcm"), "c.dcm", "", "", "", "", ""),
        (hashed("d.png"), "d.png", "", "", "", "", ""),
    ]


@pytest.mark.parametrize(
    "options, match",
    [
        ({"dicom": True, "images": "."}, "images must name the folder|dicom must be given without"),
        ({"hash_key": "key"}, "hash-key must be given with dicom"),
        ({}, "dicom must be given where a source is a DICOMDIR. .* Add --dicom"),
    ],
)
def test_list_dicom_options_that_contradict_are_refused(archive, options, match):
    write(archive, DICOMDIR=dicomdir_file(["A"]))
    with pytest.raises(InputError, match=match):
        list_images(["DICOMDIR"], output="m.csv", **options)
    assert [path.name for path in archive.iterdir()] == ["DICOMDIR"]


def test_list_dicom_without_a_radiograph_is_refused(archive):
    write(archive, a=header_of(1, Modality="CT"), b=b"")
    with pytest.raises(InputError, match="at least one radiograph. Received: 2 files, none"):
        list_images(["."], output="m.csv", dicom=True)
    assert sorted(path.name for path in archive.iterdir()) == ["a", "b"]


# DICOMDIR


def test_list_dicomdir_lists_its_images_relative_to_it(archive, caplog):
    write(archive, cd__IMAGES__IM1=header_of(1), cd__IM2=header_of(2), cd__IM3=header_of(3))
    directory = dicomdir_file([["IMAGES", "IM1"], "IM2", "GONE"], others=["SR1", "SR2"])
    write(archive, cd__DICOMDIR=directory)
    listing = list_images(["cd/DICOMDIR"], output="m.csv", dicom=True)
    assert listing == Listing(3, 0, without_header=1)
    gone = ("cd/GONE", "cd/GONE", "", "", "", "", "")
    assert rows_of("m.csv") == [row(1, "cd/IMAGES/IM1"), row(2, "cd/IM2"), gone]
    source = str(archive / "cd/DICOMDIR")
    assert caplog.messages == [f"source={source!r} references 2 files that are no images."]
    # A folder with a DICOMDIR is a folder all the same.
    assert list_images(["cd"], output="m.csv", dicom=True) == Listing(3, 1)


@pytest.mark.parametrize(
    "data, cause",
    [
        (dicomdir_file([["..", "secret"]]), "invalid_header: .* outside its folder"),
        (dicomdir_file(["A"])[:-9], "truncated: the DICOM file ends"),
        (b"text", "corrupt|truncated"),
    ],
    ids=["escape", "cut", "text"],
)
def test_list_dicomdir_that_is_damaged_or_leads_outside_is_refused(archive, data, cause):
    write(archive, DICOMDIR=data)
    with pytest.raises(InputError, match=f"must be a whole DICOMDIR .*({cause})") as caught:
        list_images(["DICOMDIR"], output="m.csv", dicom=True)
    assert CANARY not in str(caught.value)
    assert "secret" not in str(caught.value)


# A store


def test_list_dicom_on_a_store_asks_once_an_object_and_for_its_head_alone(archive, store):
    bucket = ObjectFolder(f"gs://{BUCKET}/x")
    for name, data in {"A": header_of(1), "b.dcm": header_of(2), "c.png": b"1", "d": b""}.items():
        bucket.write(name, data)
    bucket.write("DICOMDIR", dicomdir_file(["A"], others=["E"]))
    store.requests.clear()
    prefix = f"gs://{BUCKET}/x/"
    assert list_images([prefix], output="m.csv", dicom=True) == Listing(3, 2)
    expected = [row(1, f"{prefix}A"), row(2, f"{prefix}b.dcm")]
    assert rows_of("m.csv")[:2] == expected
    assert rows_of("m.csv")[2][0] == f"{prefix}c.png"
    assert sum("/download/" in path for _, path in store.requests) == 3
    assert list_images([f"{prefix}DICOMDIR"], output="m.csv", dicom=True) == Listing(1, 0)
    assert rows_of("m.csv") == expected[:1]


def test_read_start_of_an_object_reads_its_start(store):
    bucket = ObjectFolder(f"gs://{BUCKET}/x")
    bucket.write("a", b"0123456789")
    store.fail("GET", "x/a", "503")
    assert bucket.read_start("a", 4) == b"0123"
    assert bucket.read_start("a", 40) == b"0123456789"


# The command


def test_manifest_command_tells_what_became_of_dicom_files(archive):
    write(archive, a=header_of(1), b=header_of(1), c=header_of(2, Modality="CT"))
    write(archive, **{"d.dcm": b"", "e.dcm": b"", "f.txt": b""})
    arguments = [".", "--output", "m.csv", "--dicom", "--hash-key", "../key"]
    result = CliRunner().invoke(manifest_command, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == "3 images listed in m.csv; 3 left out.\n"
    assert result.stderr.splitlines() == [
        "Made a new key, ../key: keep it, for another gives other ids.",
        "Left out, by modality: 1 CT.",
        "Left out: 1 file with the SOPInstanceUID of one that is listed.",
        "Listed by path, since the header says no id: 2 DICOM files.",
    ]


def test_manifest_command_without_dicom_tells_of_it(archive):
    write(archive, **{"a.dcm": header_of(1), "b.png": b""})
    result = CliRunner().invoke(manifest_command, [".", "--output", "m.csv"])
    assert result.stdout == "2 images listed in m.csv; 0 left out.\n"
    assert result.stderr == (
        "Listed by path: 1 DICOM file; --dicom reads ids and patients from the headers.\n"
    )
