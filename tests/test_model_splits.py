"""Dividing images by patient: at random, by the NIH's lists, by a column."""

import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.splits import check_no_leak, split_by_patient, split_images
from model.training_config import Split
from schemas.errors import InputError

_SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}


def _official(tmp_path, train_val, test, **changes):
    for name, lines in (("a.txt", train_val), ("b.txt", test)):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    return Split("official", train_val_list=str(tmp_path / "a.txt"),
                 test_list=str(tmp_path / "b.txt"), **changes)  # fmt: skip


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=80).map(lambda p: [f"p{n}" for n in p]),
    st.integers(0, 5),
)
@settings(deadline=None)
def test_split_by_patient_keeps_patients_whole_and_loses_no_image(patients, seed):
    parts = split_by_patient(patients, seed, _SHARES)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(patients)))
    owners = [{patients[k] for k in part} for part in parts.values()]
    assert sum(map(len, owners)) == len(set(patients))


def test_split_by_patient_shares_are_of_patients():
    parts = split_by_patient([f"p{n}" for n in range(100)], 0, _SHARES)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 70,
        "validation": 15,
        "test": 15,
    }


def test_split_images_by_column_takes_it_as_it_is():
    parts = split_images(
        Split("column"), ["a", "b", "c"], ["1", "2", "3"], ["test", "train", "validation"], 0
    )
    assert {name: part.tolist() for name, part in parts.items()} == {
        "train": [1],
        "validation": [2],
        "test": [0],
    }


@pytest.mark.parametrize(
    ("column", "patients", "message"),
    [
        (None, "123", "must have a column split for split.kind 'column'. Received: none"),
        (["test", "train", "dev"], "123", "must hold train, validation, test. Received: 'dev'"),
        (["test", "train", None], "123", "must hold train, validation, test. Received: ''"),
        (["test", "train", "train"], "123", "Each part must have an image.*validation"),
        (["test", "train", "validation"], "122", "1 patients in both train and validation"),
    ],
    ids=["no column", "unknown", "empty", "no validation", "leak"],
)
def test_split_images_by_column_mistake_is_refused(column, patients, message):
    with pytest.raises(InputError, match=message):
        split_images(Split("column"), list("abc"), list(patients), column, 0)


def test_split_images_officially_takes_the_test_list_and_carves_validation_by_patient(tmp_path):
    ids = [f"images/{k:04d}.png" for k in range(100)]
    patients = [f"p{k // 2}" for k in range(100)]
    names = [f"{k:04d}.png" for k in range(100)]
    split = _official(tmp_path, names[:80], names[80:], validation_share=0.25)
    parts = split_images(split, ids, patients, None, 3)
    assert parts["test"].tolist() == list(range(80, 100))
    assert (len(parts["train"]), len(parts["validation"])) == (60, 20)
    check_no_leak(parts, patients)


def test_split_images_officially_image_in_no_list_is_refused(tmp_path):
    split = _official(tmp_path, ["a.png", "b.png"], ["c.png"])
    with pytest.raises(InputError, match=r"exactly one of the official lists.*1 in none .* d\.png"):
        split_images(split, ["a.png", "b.png", "c.png", "d.png"], list("1234"), None, 0)


def test_split_images_officially_patient_in_both_lists_is_refused(tmp_path):
    names = [f"{k}.png" for k in range(10)]
    split = _official(tmp_path, names[:9], names[9:])
    with pytest.raises(InputError, match="1 patients in both .* and test"):
        split_images(split, names, list("0123456780"), None, 0)


def test_split_images_of_the_nih_labels_officially_equals_the_lists(nih_labels):
    lists = [nih_labels.parent / f"nih_official_{n}_list.txt.gz" for n in ("train_val", "test")]
    table = pd.read_csv(nih_labels)
    ids, patients = table["Image Index"].tolist(), table["Patient ID"].astype(str).tolist()
    split = Split("official", train_val_list=str(lists[0]), test_list=str(lists[1]))
    parts = split_images(split, ids, patients, None, 0)
    for part, path in zip((("train", "validation"), ("test",)), lists, strict=True):
        expected = set(gzip.decompress(path.read_bytes()).decode().split())
        assert {ids[k] for name in part for k in parts[name]} == expected
    assert sum(map(len, parts.values())) == 112_120
    owners = [{patients[k] for k in part} for part in parts.values()]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 30_805
