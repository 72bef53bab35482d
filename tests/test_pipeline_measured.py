"""What a run's scores are worth on its labelled images, and what the report says of it."""

import dataclasses
import html
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.summary import summarise
from model.calibration import Calibration, Scaling
from model.evaluation import evaluate
from model.score_table import LabelledScores
from model.thresholds import bare_thresholds
from pipeline import measured
from pipeline.commit import commit_run
from pipeline.measured import SAMPLES, measure
from pipeline.report_tables import RunTables
from schemas.findings import ABNORMAL_FINDINGS, FINDINGS, score_column
from schemas.tables import WORKLIST_SCHEMA, scores_schema
from tests.fakes import (
    LOCAL,
    make_facts,
    make_job,
    make_settings,
    manifest_row,
    scores_of,
    stage,
)

IMAGES = 60
RECORD = {"thresholds": dict.fromkeys(ABNORMAL_FINDINGS, 0.5), "calibration": None}
CARRIED = ("patient_id", "labels")


def scored_rows(images=IMAGES, seed=0):
    """Returns rows with random scores: every second image has Mass, every sixth a Hernia too."""
    scores = np.random.default_rng(seed).random((images, len(FINDINGS)), np.float32)
    return [
        scores_of(
            f"i{k:02d}",
            patient_id=f"p{k // 2}",
            labels="Hernia|Mass" if k % 6 == 0 else "Mass" if k % 2 == 0 else "No Finding",
            **{score_column(name): row[j] for j, name in enumerate(FINDINGS)},
        )
        for k, row in enumerate(scores)
    ]


def write_tables(folder, rows, listed=(), carried=CARRIED):
    """Writes scores in two parts, and a worklist of these ids."""
    parts = []
    for number, chosen in enumerate((rows[:20], rows[20:])):
        parts.append(folder / f"part-{number}.parquet")
        pq.write_table(pa.Table.from_pylist(chosen, scores_schema(carried)), parts[-1])
    worklist = folder / "worklist.parquet"
    pq.write_table(
        pa.Table.from_pylist([{"image_id": name} for name in listed], WORKLIST_SCHEMA), worklist
    )
    return RunTables(parts, [], worklist, lambda name: b"")


def table_of(rows):
    return LabelledScores(
        image_ids=np.array([row["image_id"] for row in rows], object),
        findings=FINDINGS,
        scores=np.array([[row[score_column(name)] for name in FINDINGS] for row in rows]),
        labels=np.array([[name in row["labels"].split("|") for name in FINDINGS] for row in rows]),
        patients=np.array([f"p{row['patient_id']}" for row in rows], object),
        attributes={},
    )


def test_measure_is_what_evaluate_says_of_the_labelled_images(tmp_path):
    rows = scored_rows()
    rows[3]["labels"], rows[30]["labels"], rows[50]["labels"] = None, "", "mass, perhaps"
    found = measure(write_tables(tmp_path, rows), RECORD)
    assert (found.labelled, found.unlabelled, found.not_understood) == (57, 2, 1)
    assert found.by_patient
    kept = [row for k, row in enumerate(rows) if k not in (3, 30, 50)]
    thresholds = bare_thresholds(RECORD["thresholds"])
    expected = evaluate(table_of(kept), thresholds=thresholds, samples=SAMPLES)
    assert found.metrics["findings"]["Mass"] == expected["findings"]["Mass"]
    assert found.metrics["abnormality"] == expected["abnormality"]
    assert found.metrics["images"] == 57 and not found.metrics["calibrated"]


def test_measure_of_a_finding_of_few_patients_gives_its_positives_alone(tmp_path):
    found = measure(write_tables(tmp_path, scored_rows(54)), RECORD)
    assert found.metrics["findings"]["Hernia"] == {"positives": 9}
    assert found.metrics["findings"]["Edema"] == {"positives": 0}
    assert found.metrics["mean_auc"] is None
    short = found.to_json()
    assert short["findings"]["Hernia"] == {
        "positives": 9, "auc": None, "recall": None, "precision": None
    }  # fmt: skip
    assert short["findings"]["Mass"]["auc"] == found.metrics["findings"]["Mass"]["auc"] > 0
    assert measure(write_tables(tmp_path, scored_rows(60)), RECORD).metrics["findings"]["Hernia"][
        "auc"
    ]


def test_measure_without_patients_draws_images(tmp_path):
    found = measure(write_tables(tmp_path, scored_rows(), carried=("labels",)), RECORD)
    assert not found.by_patient and found.metrics["patients"] == IMAGES
    rows = [{**row, "patient_id": None} for row in scored_rows()]
    assert not measure(write_tables(tmp_path, rows), RECORD).by_patient


def test_measure_takes_unknown_patients_for_one_each(tmp_path):
    rows = scored_rows()
    for row in rows[:10]:
        row["patient_id"] = None
    found = measure(write_tables(tmp_path, rows), RECORD)
    assert found.by_patient and found.metrics["patients"] == 25 + 10


def test_measure_of_many_images_draws_some(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "MOST_MEASURED", 40)
    found = measure(write_tables(tmp_path, scored_rows()), RECORD)
    assert (found.labelled, found.metrics["images"]) == (IMAGES, 40)


def test_measure_counts_what_the_worklist_holds(tmp_path):
    listed = ["i00", "i01", "i02", "i58", "unlabelled"]
    found = measure(write_tables(tmp_path, scored_rows(), listed), RECORD)
    assert found.listed == {True: 3, False: 1}


def test_measure_reads_abnormality_as_the_run_was_calibrated(tmp_path):
    # What Edema scores says nothing here, and without a calibration it drowns what Mass says.
    rows = scored_rows()
    for k, row in enumerate(rows):
        row["score_Mass"] = np.float32(0.6 - 0.1 * (k % 2))
    scalings = {name: Scaling(1.0, -30.0) for name in ABNORMAL_FINDINGS}
    calibration = Calibration(scalings | {"Mass": None}).to_json()
    tables = write_tables(tmp_path, rows)
    assert measure(tables, RECORD).metrics["abnormality"]["auc"] < 0.8
    found = measure(tables, RECORD | {"calibration": calibration}).metrics
    assert found["calibrated"] and found["abnormality"]["auc"] == 1


@pytest.mark.parametrize("carried", [("patient_id",), CARRIED])
def test_measure_without_labels_is_nothing(tmp_path, carried):
    rows = [{**row, "labels": None} for row in scored_rows()]
    found = measure(write_tables(tmp_path, rows, carried=carried), RECORD)
    assert (found.labelled, found.unlabelled, found.metrics) == (0, IMAGES, {})
    assert found.to_json() is None
    nothing = dataclasses.replace(write_tables(tmp_path, rows), scores=[])
    assert measure(nothing, RECORD).labelled == 0


# In a run


def publish(folder, rows):
    """Publishes a run of these rows with a report; returns its record and the report's text."""
    manifest = [manifest_row(row["image_id"], carried=("", "")) for row in rows]
    job = make_job(folder, manifest, carried=CARRIED)
    for row in rows:
        found = [name for name in ABNORMAL_FINDINGS if row[score_column(name)] >= 0.5]
        cams = [{"finding": name, "grid": [0] * 49, "overlay": None} for name in found]
        row |= {"findings": found, "flagged": bool(found), "cams": cams}
    stage(job.paths, "scores", "0000", rows, CARRIED)
    facts = make_facts()
    facts.timings_s["start"] = 1.0
    record = commit_run(job, make_settings(budget=30, report=True), LOCAL, facts)
    page = (folder / "report/run_id=r1.html").read_text(encoding="utf-8")
    section = page.partition('<h2 id="measured">')[2].partition("<section")[0]
    return record, " ".join(html.unescape(re.sub("<[^>]+>", " ", section)).split())


def test_commit_run_states_what_was_measured_in_record_report_and_summary(tmp_path):
    rows = scored_rows()
    rows[1]["labels"], rows[3]["labels"] = "", "<b>Effusion"
    record, text = publish(tmp_path / "out", rows)
    found = record["measured"]
    assert (found["images"], found["unlabelled"], found["not_understood"]) == (58, 1, 1)
    mass, area = found["findings"]["Mass"], found["abnormality_auc"]
    assert text.startswith("Measured against labels 1 image has labels that are no findings")
    assert (
        "On all 58 images of this run that carried labels; 1 more carried none, and is left"
        " out." in text
    )
    assert "no claim of diagnostic value follows." in text
    assert f"AUC of abnormality, for any of the 14 findings {area:.3f} [" in text
    assert "Mean AUC of the 14 findings – Images with one of the 14 labelled 30 of 58" in text
    assert "by 200 bootstrap samples of patients." in text
    assert re.search(
        rf"Mass 30 {mass['auc']:.3f} \[\d\.\d\d, \d\.\d\d\] {mass['recall']:.3f} \[[^]]+\]"
        rf" {mass['precision']:.3f} \[",
        text,
    )
    assert "Edema 0 – – –" in text
    assert f"\n  Measured: AUC {area:.3f} (any abnormality), on 58 labelled images.\n" in summarise(
        record, "out"
    )


def test_commit_run_without_labels_says_that_nothing_was_measured(tmp_path):
    rows = [{**row, "labels": None} for row in scored_rows(20)]
    record, text = publish(tmp_path / "out", rows)
    assert record["measured"] is None
    assert text == (
        "Measured against labels Nothing was measured: no scored image carried labels from the"
        " manifest."
    )
    assert "Measured" not in summarise(record, "out")
