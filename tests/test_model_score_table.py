"""Reading scores and labels, and joining them."""

import gzip
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.calibration import Calibration, Scaling
from model.label_table import read_labels
from model.score_files import read_own_labels, read_scores, run_calibration, run_thresholds
from model.score_table import base_name, read_image_list, read_labelled_scores
from schemas.errors import InputError
from schemas.findings import ABNORMAL_FINDINGS, FINDINGS, score_column
from schemas.tables import with_metadata


def _scores(ids, prefix="score_", findings=FINDINGS, column="image_id", value=None):
    """Returns a frame in which finding k of image i scores (i + k) / 100."""
    frame = pd.DataFrame({column: ids})
    for k, finding in enumerate(findings):
        score = (np.arange(len(ids)) + k) / 100 if value is None else value
        frame[prefix + finding.replace(" ", "_")] = np.float32(score)
    return frame


def _labels(ids, **columns):
    frame = {"image_id": ids, "labels": ["Mass|Edema"] * len(ids), "patient_id": ids}
    return pd.DataFrame(frame | columns)


def _save(frame, path):
    if path.suffix == ".parquet":
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.to_parquet(path, index=False)
    else:
        separator = "\t" if ".tsv" in path.name else ","
        frame.to_csv(path, index=False, sep=separator)
    return str(path)


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz", "s.tsv", "s.parquet"])
def test_read_scores_every_format_gives_the_same_float32(tmp_path, name):
    frame = _scores(["007", "b"])
    frame["score_Mass"] = np.float32([1 / 3, 1e-9])
    scores = read_scores(_save(frame, tmp_path / name))
    assert scores.image_ids.tolist() == ["007", "b"]
    assert scores.findings == FINDINGS
    np.testing.assert_array_equal(scores.scores, frame.iloc[:, 1:].to_numpy(np.float32))
    assert scores.scores.dtype == np.float32


def test_read_scores_json_lines_keep_ids_as_text(tmp_path):
    path = tmp_path / "s.jsonl"
    rows = _scores(["007", "8"]).to_dict("records")
    path.write_text("\n".join(json.dumps(row) for row in rows))
    assert read_scores(str(path)).image_ids.tolist() == ["007", "8"]


def test_read_scores_foreign_columns_with_spaces_prefix_and_no_no_finding(tmp_path):
    frame = _scores(["a.png"], "prob_", ABNORMAL_FINDINGS[::-1], "Image Index")
    frame = frame.rename(columns={"prob_Pleural_Thickening": "prob_Pleural Thickening"})
    scores = read_scores(_save(frame, tmp_path / "s.csv"), "prob_")
    assert scores.findings == ABNORMAL_FINDINGS
    np.testing.assert_array_equal(scores.scores[0], np.float32(np.arange(13, -1, -1) / 100))


def test_read_scores_of_a_folder_are_all_its_files(tmp_path):
    for run in ("a", "b"):
        _save(_scores([run]), tmp_path / f"run_id={run}" / "part-00000.parquet")
    assert read_scores(str(tmp_path)).image_ids.tolist() == ["a", "b"]


def write_run(output, run_id, ids, thresholds):
    """Writes what a run leaves behind, as far as it matters here."""
    path = f"scores/run_id={run_id}/part-00000.parquet"
    (output / path).parent.mkdir(parents=True)
    table = pa.Table.from_pandas(_scores(ids), preserve_index=False)
    schema = with_metadata(table.schema, {"thresholds": thresholds})
    pq.write_table(table.cast(schema), output / path)
    record = output / "runs" / f"{run_id}.json"
    record.parent.mkdir(exist_ok=True)
    files = [{"path": path}, {"path": f"rejects/run_id={run_id}/part-00000.parquet"}]
    record.write_text(json.dumps({"files": files}))
    return str(record)


def test_read_scores_of_a_record_are_the_files_it_lists(tmp_path):
    thresholds = dict.fromkeys(ABNORMAL_FINDINGS, 0.25)
    write_run(tmp_path, "r1", ["a"], thresholds)
    record = write_run(tmp_path, "r2", ["b", "c"], thresholds | {"Mass": 0.5})
    assert read_scores(record).image_ids.tolist() == ["b", "c"]
    found = run_thresholds(record)
    assert {name: value.threshold for name, value in found.items()} == thresholds | {"Mass": 0.5}
    with pytest.raises(InputError, match="flagged with the same thresholds.*Name one run"):
        run_thresholds(str(tmp_path / "scores"))
    with pytest.raises(InputError, match=r"a folder of runs\. Name .*runs/ID\.json"):
        read_scores(str(tmp_path))


def test_read_labelled_scores_by_own_labels_leaves_out_images_without_any(tmp_path):
    for part, ids in (("0", ["a", "b"]), ("1", ["c", "d"])):
        frame = _scores(ids).assign(labels=["Mass", ""], patient_id=["7", ""], view_position="AP")
        _save(frame, tmp_path / f"part-{part}.parquet")
    labels = read_own_labels(str(tmp_path))
    assert labels.image_ids.tolist() == ["a", "c"] and labels.patients.tolist() == ["7", "7"]
    assert labels.attributes["view_position"].tolist() == ["AP", "AP"]
    table = read_labelled_scores(str(tmp_path), labels, only_labelled=True)
    assert table.image_ids.tolist() == ["a", "c"]
    assert (table.unlabelled, table.unscored) == (2, 0)
    assert table.labels[:, FINDINGS.index("Mass")].tolist() == [True, True]
    with pytest.raises(InputError, match="Every image with a score must have a label"):
        read_labelled_scores(str(tmp_path), labels)


def test_read_own_labels_of_scores_without_any_is_refused(tmp_path):
    frame = _scores(["a"]).assign(labels="", patient_id="7")
    with pytest.raises(InputError, match="must carry the labels of some images, or --labels"):
        read_own_labels(_save(frame, tmp_path / "s.parquet"))


def test_run_calibration_is_that_of_the_run_and_of_one(tmp_path):
    scalings = {name: Scaling(1.5, -2.0) for name in ABNORMAL_FINDINGS} | {"Mass": None}
    calibration = Calibration(scalings)
    for name, values in (("a", calibration.to_json()), ("b", None)):
        schema = pa.Schema.from_pandas(_scores([name]), preserve_index=False)
        facts = {"thresholds": {}, "calibration": values}
        table = pa.Table.from_pandas(_scores([name]), with_metadata(schema, facts))
        pq.write_table(table, tmp_path / f"{name}.parquet")
    assert run_calibration(str(tmp_path / "a.parquet")) == calibration
    assert run_calibration(str(tmp_path / "b.parquet")) is None
    assert run_calibration(_save(_scores(["a"]), tmp_path / "s.csv")) is None
    with pytest.raises(InputError, match="scores of one calibration"):
        run_calibration(str(tmp_path))


def test_run_thresholds_of_files_of_no_run_are_none(tmp_path):
    assert run_thresholds(_save(_scores(["a"]), tmp_path / "s.parquet")) is None
    assert run_thresholds(_save(_scores(["a"]), tmp_path / "s.csv")) is None


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        pytest.param(
            _scores(["a"]).drop(columns=["score_Mass", "score_Edema"]),
            "none for Edema, Mass.*--score-prefix",
            id="findings missing",
        ),
        pytest.param(_scores(["a"], column="file"), "image_id or Image Index", id="no image"),
        pytest.param(
            _scores(["a", "b", "a"]), "each image once. Received: 1 twice.*first a", id="2x"
        ),
        pytest.param(_scores([]), "at least one image", id="empty"),
        pytest.param(
            _scores(list("abcde"), value=[0, 1.1, -0.1, np.nan, 7]),
            r"from 0 to 1\. Received: 4 images \(first b, c, d\)",
            id="out of range",
        ),
    ],
)  # fmt: skip
def test_read_scores_broken_table_is_refused(tmp_path, frame, message):
    with pytest.raises(InputError, match=message):
        read_scores(_save(frame, tmp_path / "s.csv"))


def test_read_scores_text_for_a_number_is_refused_by_image(tmp_path):
    frame = _scores(["a", "b"]).astype(str)
    frame.loc[1, "score_Mass"] = "high"
    with pytest.raises(InputError, match=r"from 0 to 1\. Received: 1 images \(first b\)"):
        read_scores(_save(frame, tmp_path / "s.csv"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.xlsx", b"", r"must end in one of \.csv"),
        ("s.csv", None, "can be read.*No such file"),
        ("s.csv", b"", "can be read.*EmptyDataError"),
        ("s.csv", b"image_id\n\xff\xfe", "can be read.*UnicodeDecodeError|score"),
        # Without the time in it, which would give the test another name in each process.
        ("s.csv.gz", gzip.compress(b"image_id\n" * 999, mtime=0)[:-9], "can be read|scores for"),
        ("s.parquet", b"no", "can be read.*ArrowInvalid"),
        ("s.jsonl", b"{", "can be read.*JSONDecodeError"),
        ("r.json", b"{}", r"record of a run.*KeyError"),
    ],
)
def test_read_scores_unreadable_file_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_scores(str(tmp_path / name))


def test_read_scores_folder_without_parquet_is_refused(tmp_path):
    with pytest.raises(InputError, match="must hold Parquet files"):
        read_scores(str(tmp_path))


def test_read_labels_nih_columns_of_both_editions(tmp_path):
    frame = pd.DataFrame(
        {
            "Image Index": [f"{number}.png" for number in range(9)],
            "Finding Labels": ["No Finding", "Effusion|Mass", *["Hernia"] * 6, ""],
            "Patient ID": range(9),
            "Patient Age": ["057", "017Y", "011M", "148", "120", "", "080Y", "18", "40"],
            "Patient Gender": ["M", "F", "", *["M"] * 6],
            "View Position": ["PA", "AP", *["PA"] * 7],
        }
    )
    labels = read_labels(_save(frame, tmp_path / "l.csv"))
    assert labels.image_ids.tolist() == [f"{number}.png" for number in range(8)]
    assert [FINDINGS[k] for k in np.flatnonzero(labels.labels[1])] == ["Effusion", "Mass"]
    assert labels.labels.sum() == 9
    assert labels.patients.tolist() == list("01234567")
    bands = ["40-59", "0-17", "0-17", "", "80+", "", "80+", "18-39"]
    assert labels.attributes["age_band"].tolist() == bands
    assert labels.attributes["sex"].tolist() == ["M", "F", "", *["M"] * 5]
    assert labels.attributes["view_position"].tolist() == ["PA", "AP", *["PA"] * 6]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (_labels(["a"]).drop(columns="labels"), "column labels or Finding Labels"),
        (_labels(["a"]).drop(columns="patient_id"), "column patient_id or Patient ID"),
        (_labels(["a", "a"]), "name each image once"),
        (_labels(["a"], labels=["Gout"]), "labels must be names of findings.*'Gout'"),
    ],
)
def test_read_labels_broken_table_is_refused(tmp_path, frame, message):
    with pytest.raises(InputError, match=message):
        read_labels(_save(frame, tmp_path / "l.csv"))


def _join(tmp_path, score_ids, labels, **options):
    scores = _save(_scores(score_ids), tmp_path / "s.csv")
    return read_labelled_scores(scores, _save(labels, tmp_path / "l.csv"), **options)


def test_read_labelled_scores_keep_the_order_of_the_scores(tmp_path):
    labels = _labels(
        ["c", "b", "a"],
        labels=["Mass", "No Finding", "Edema"],
        patient_id=["3", "2", "1"],
        view_position=["AP", "", "PA"],
    )
    table = _join(tmp_path, ["a", "c"], labels)
    assert table.image_ids.tolist() == ["a", "c"]
    assert [FINDINGS[k] for k in table.labels.argmax(axis=1)] == ["Edema", "Mass"]
    assert table.labels.sum() == 2
    assert table.patients.tolist() == ["1", "3"]
    assert table.attributes["view_position"].tolist() == ["PA", "AP"]
    assert table.scores[1, 0] == np.float32(0.01)
    assert table.unscored == 1
    part = table.select(np.array([False, True]))
    assert (part.image_ids.tolist(), part.patients.tolist()) == (["c"], ["3"])


def test_read_labelled_scores_join_by_base_name_where_the_id_is_unknown(tmp_path):
    labels = _labels(["1.png", "x/2.png", "y/3.png", "z/3.png"])
    table = _join(tmp_path, ["images_001.tar.gz#in/1.png", "2.png", "y/3.png"], labels)
    assert table.patients.tolist() == ["1.png", "x/2.png", "y/3.png"]


@pytest.mark.parametrize(
    ("ids", "labelled", "message"),
    [
        pytest.param(
            list("abcde"), ["a"], r"Received: 4 images \(first b, c, d\) without", id="none"
        ),
        pytest.param(["1"], ["x/1", "y/1"], r"1 images \(first 1\) without", id="two labels"),
        pytest.param(["p/1", "q/1"], ["1"], r"2 images \(first p/1, q/1\)", id="two scores"),
        pytest.param(["1", "p/1"], ["1"], r"1 images \(first p/1\) without", id="id goes first"),
        pytest.param(["x/1", "1"], ["x/1", "2"], r"1 images \(first 1\) without", id="id first"),
    ],
)  # fmt: skip
def test_read_labelled_scores_image_without_a_label_is_refused(tmp_path, ids, labelled, message):
    with pytest.raises(InputError, match=message):
        _join(tmp_path, ids, _labels(labelled))


def test_read_labelled_scores_image_without_a_patient_is_refused(tmp_path):
    labels = _labels(["a", "b", "c"], patient_id=["1", "", ""])
    with pytest.raises(InputError, match=r"the patient of every image.*1 images \(first b\)"):
        _join(tmp_path, ["a", "b"], labels)


def test_read_labelled_scores_official_keeps_the_listed_images(tmp_path):
    test_list = tmp_path / "test_list.txt.gz"
    test_list.write_bytes(gzip.compress(b"1.png\n3.png\n4.png\n"))
    options = {"split": "official", "official_test_list": str(test_list)}
    labels = _labels(["1.png", "2.png", "3.png", "4.png", "5.png"])
    table = _join(tmp_path, ["images/1.png", "images/2.png", "images/3.png"], labels, **options)
    assert table.image_ids.tolist() == ["images/1.png", "images/3.png"]
    assert table.unscored == 1
    with pytest.raises(InputError, match="images of --test-list. Received: none"):
        _join(tmp_path, ["2.png"], labels, **options)
    with pytest.raises(InputError, match="needs --test-list FILE"):
        _join(tmp_path, ["1.png"], labels, split="official")
    with pytest.raises(ValueError, match="'offical'"):
        _join(tmp_path, ["1.png"], labels, split="offical")


@pytest.mark.parametrize(
    ("content", "message"), [(None, "No such file"), (b"\n", "at least one"), (b"\xff", "Unicode")]
)
def test_read_image_list_broken_file_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_image_list(str(tmp_path / "list.txt"))


@pytest.mark.parametrize(
    ("image_id", "name"),
    [
        ("1.png", "1.png"),
        ("a/b/1.png", "1.png"),
        ("a/images.tar#1.png", "1.png"),
        ("images.tgz#b/1.png", "1.png"),
        ("a/1#2.png", "1#2.png"),
    ],
)
def test_base_name_is_without_folders_and_archive(image_id, name):
    assert base_name(image_id) == name


def test_score_columns_are_those_of_the_scores_table():
    assert list(_scores([]))[1:] == [score_column(finding) for finding in FINDINGS]
