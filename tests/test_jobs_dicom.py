"""A folder of DICOM to a worklist, whose headers name somebody: who it is, nothing tells."""

import csv
import json
import logging
import random
import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from pydicom import Dataset, datadict, dcmread, uid
from pydicom.filebase import DicomBytesIO

from jobs.cli import cli
from pipeline import run, scoring
from scripts.dicom_files import dicom_file, dicomdir_file
from tests.fakes import FakeScorer, picture, tree, varied_picture

_CANARY = "Zephyrine_Quackenbush"
_PART = _CANARY[:8].casefold()
_TEXTS = ("PN", "LO", "SH", "LT", "ST", "UT", "UC", "AE")
_GROUPS = range(0x0008, 0x0041)
"""Of tags: patient, study, device, visit, procedure."""


def _named(**attributes):
    """Returns a file with a name in each text of its header, and where codes and dates belong."""
    header = {
        **{"Modality": "DX", "ViewPosition": "PA", "StudyDate": "20261126"},
        **{"PatientComments": _CANARY, "StudyTime": _CANARY, "PatientBirthDate": _CANARY},
    } | attributes
    dataset = dcmread(DicomBytesIO(dicom_file(header.pop("cells"), **header)))
    for tag, (vr, many, _, is_retired, keyword) in datadict.DicomDictionary.items():
        if vr in _TEXTS and tag >> 16 in _GROUPS and not is_retired:
            setattr(dataset, keyword, [_CANARY[:16]] * 2 if many == "2" else _CANARY)
    block = dataset.private_block(0x11, f"{_CANARY} maker", create=True)
    block.add_new(1, "LO", _CANARY)
    dataset.add_new(0x60004000, "LT", _CANARY)
    stream = DicomBytesIO()
    dataset.save_as(stream)
    return stream.getvalue()


def _named_code():
    code = Dataset()
    code.CodeValue = code.CodingSchemeDesignator = _CANARY[:16]
    code.CodeMeaning = _CANARY
    return code


def _presentable(number):
    """Returns a file whose header is in order, and names somebody as often as that allows."""
    uids = {"StudyInstanceUID": f"1.3.{number}", "SeriesInstanceUID": f"1.4.{number}"}
    data = _named(cells=varied_picture(number), SOPInstanceUID=f"1.2.{number}", **uids)
    dataset = dcmread(DicomBytesIO(data))
    dataset.StudyTime, dataset.PatientBirthDate = "1011", "19500101"
    dataset.AccessionNumber = dataset.StudyID = _CANARY[:16]
    stream = DicomBytesIO()
    dataset.save_as(stream)
    return stream.getvalue()


def _damaged(data, number):
    """Returns a file with some bytes of its header changed."""
    dice, changed = random.Random(number), bytearray(data)
    for _ in range(1 + number % 5):
        changed[dice.randrange(132, len(data) - 50_176)] = dice.randrange(256)
    return bytes(changed)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Files, some whole, some damaged and some no radiographs, in a folder of a name."""
    folder = tmp_path_factory.mktemp("archive") / _CANARY
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what writes wrong values
        good = [
            _named(cells=varied_picture(number), SOPInstanceUID=f"1.2.{number}")
            for number in range(3)
        ]
        other = {
            "strange": _named(
                **{"cells": picture(200), "SOPInstanceUID": "1.2.8", "ViewPosition": _CANARY},
                **{"StudyDate": _CANARY, "BurnedInAnnotation": _CANARY},
            ),
            "unnamed.dcm": _named(
                **{"cells": picture(100), "SOPInstanceUID": _CANARY, "ViewPosition": ""},
                ViewCodeSequence=[_named_code()],
            ),
            "IM_CT": _named(cells=picture(100), SOPInstanceUID="1.2.9", Modality="CT"),
            "report": _named(cells=picture(1), SOPClassUID=uid.BasicTextSRStorage, Modality="SR"),
            "DICOMDIR": dicomdir_file([_CANARY]),
            "pacs.dcm": _presentable(5),
        }
    files = {f"{_CANARY}{number}.dcm": data for number, data in enumerate(good)} | other
    files |= {"cut.dcm": good[0][:3000], "short.dcm": good[1][:-1000], "text.dcm": b"no"}
    files |= {f"bad{number}.dcm": _damaged(good[number % 3], number) for number in range(40)}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def _run(*arguments):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        result = CliRunner().invoke(cli, [*map(str, arguments)], catch_exceptions=False)
    assert not [warning for warning in warned if _CANARY in str(warning.message)]
    return result


def test_names_in_headers_stand_nowhere_in_what_a_hashed_archive_gives(
    archive, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.DEBUG)
    manifest, key = archive.parent / "m.csv", tmp_path / "key"
    listed = _run("manifest", archive, "--output", manifest, "--dicom", "--hash-key", key)
    assert listed.exit_code == 0
    assert "Left out, by modality: 1 CT, 1 SR.\n" in listed.stderr
    with open(manifest, newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(_CANARY in row.pop("uri") for row in rows)
    assert _PART not in json.dumps(rows).casefold()
    assert {row["study_date"] for row in rows} == {"2026", ""}
    with open(manifest, "a") as file:  # explicitly, what is no radiograph
        file.writelines(f"x{n},{_CANARY}/{n},,,,,\n" for n in ("IM_CT", "report", "DICOMDIR"))

    FakeScorer().install(monkeypatch)
    monkeypatch.setattr(run, "load_scorer", scoring.load_scorer)
    scored = _run(
        *("score", "--manifest", manifest, "--output", tmp_path / "out", "--run-id", "night"),
        *("--redact-uris", "--log-json", "--reject-limit", "1", "--carry", "modality"),
        *("--gate", "off", "--dicom-out", tmp_path / "pacs"),
    )
    assert scored.exit_code == 0
    assert _PART not in (listed.stderr + scored.output + caplog.text).casefold()
    out = tmp_path / "out"
    secret = key.read_bytes().strip()
    for name in tree(out):
        content = (out / name).read_bytes()
        if name.endswith(".parquet"):
            content += json.dumps(pq.read_table(out / name).to_pylist(), default=str).encode()
        assert _PART not in name.casefold() and _PART.encode() not in content.lower(), name
        assert secret not in content, name
    assert secret.decode() not in scored.output + listed.output

    tables = {
        table: pq.read_table(out / table / "run_id=night").to_pylist()
        for table in ("scores", "rejects")
    }
    assert len(tables["scores"]) + len(tables["rejects"]) == len(rows) + 3
    assert len(tables["scores"]) >= 5
    reasons = {row["image_id"]: row["reason"] for row in tables["rejects"]}
    assert reasons["xIM_CT"] == "other_modality"
    assert reasons["xDICOMDIR"] == "not_an_image"
    assert (out / "report/run_id=night.html").exists()

    # Who reads the images must know whose they are: there, and nowhere else.
    record = json.loads((out / "runs/night.json").read_bytes())
    assert record["options"]["dicom_out"] is None
    counts = record["counts"]
    assert (counts["dicom_images"], counts["dicom_objects"]) == (1, 4)
    assert counts["dicom_not_written"] == {"unusable_header": counts["drawn"] - 1}
    assert "DICOM: 4 objects of 1 images in --dicom-out; no objects of: unusable" in scored.output
    objects = [path.read_bytes() for path in (tmp_path / "pacs/run_id=night/1.3.5").iterdir()]
    assert len(objects) == 4
    assert all(_CANARY.encode() in data for data in objects)


def test_score_carries_what_headers_said(archive, tmp_path, monkeypatch):
    manifest = tmp_path / "m.csv"
    sources = [archive / f"{_CANARY}{number}.dcm" for number in range(3)]
    assert _run("manifest", *sources, "--output", manifest, "--dicom").exit_code == 0
    FakeScorer().install(monkeypatch)
    monkeypatch.setattr(run, "load_scorer", scoring.load_scorer)
    options = ("--carry", "modality", "--carry", "photometric_interpretation", "--no-report")
    result = _run("score", "--manifest", manifest, "--output", tmp_path / "out", *options)
    assert result.exit_code == 0
    (part,) = (tmp_path / "out" / "scores").rglob("*.parquet")
    names = ["image_id", "patient_id", "view_position", "study_date", "modality"]
    table = pq.ParquetFile(part).read([*names, "photometric_interpretation"])
    assert sorted(map(tuple, (row.values() for row in table.to_pylist()))) == [
        (f"1.2.{number}", _CANARY, "PA", "2026-11-26", "DX", "MONOCHROME2") for number in range(3)
    ]
    assert _CANARY not in result.output
    assert np.all(table["patient_id"].to_numpy() == _CANARY)
