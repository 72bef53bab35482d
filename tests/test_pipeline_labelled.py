"""Labelled images for training, and what is refused."""

import csv
import shutil

import numpy as np
import pytest

from model.preprocessing import prepare
from pipeline.labelled import load_parts
from schemas.errors import InputError
from schemas.findings import FINDINGS


def _rows(phantoms):
    with open(phantoms / "manifest.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def archive(phantoms, tmp_path):
    """A copy of the sample archive whose manifest a test may change."""
    shutil.copytree(phantoms, tmp_path / "archive")
    rows = _rows(phantoms)
    for number, row in enumerate(rows):
        # Two images in turn are of one patient.
        row["split"] = ("train", "validation", "test")[number // 2 % 3]

    def write():
        path = tmp_path / "archive" / "split.csv"
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        return str(path)

    return rows, write


def test_load_parts_given_split_is_followed_exactly(archive, tmp_path):
    rows, write = archive
    parts, split = load_parts(write(), seed=0)
    assert split == "the manifest's column split"
    for name, part in parts.items():
        chosen = [row for row in rows if row["split"] == name]
        files = [tmp_path / "archive" / row["uri"] for row in chosen]
        pixels = np.stack([prepare(file.read_bytes()).pixels for file in files])
        np.testing.assert_array_equal(part.pixels, pixels)
        labels = [{f for f, on in zip(FINDINGS, row, strict=True) if on} for row in part.labels]
        assert labels == [set(row["labels"].split("|")) for row in chosen]


def test_load_parts_without_a_split_divides_patients(phantoms):
    parts, split = load_parts(str(phantoms / "manifest.csv"), seed=1)
    assert split == "15% of patients"
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 8,
        "validation": 2,
        "test": 2,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda rows: rows[0].update(labels=""), "labels for every image", id="none"),
        pytest.param(
            lambda rows: rows[0].update(labels="Gout"), "names of findings.*'Gout'", id="unknown"
        ),
        pytest.param(
            lambda rows: rows[0].update(labels="Mass|No Finding"), "'No Finding' alone", id="both"
        ),
        pytest.param(lambda rows: rows[0].update(patient_id=""), "patient_id for every", id="id"),
        pytest.param(
            lambda rows: rows[0].update(split="test"), "Received: 1 patients in several", id="leak"
        ),
        pytest.param(lambda rows: rows[0].update(split="exam"), "unknown \\['exam'\\]", id="split"),
        pytest.param(
            lambda rows: [row.update(split="train") for row in rows],
            r"absent \['test', 'validation'\]",
            id="empty part",
        ),
        pytest.param(
            lambda rows: rows[3].update(uri="gone.png"),
            "1 that do not, first phantom-s7-00003 \\(not_found\\)",
            id="missing image",
        ),
    ],
)
def test_load_parts_mistake_is_refused(archive, change, message):
    rows, write = archive
    change(rows)
    with pytest.raises(InputError, match=message):
        load_parts(write(), seed=0)
