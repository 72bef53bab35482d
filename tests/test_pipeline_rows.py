"""Rows of the published tables: every column, exactly, and what is flagged."""

import dataclasses
import datetime
import math

import numpy as np
import pyarrow as pa
import pytest
from apache_beam import Create

from model.calibration import Calibration, Scaling
from model.thresholds import threshold_vector
from pipeline.elements import RejectedImage, ScoredImage
from pipeline.rows import ApplyThresholds, reject_row, score_row
from schemas.findings import ABNORMAL_FINDINGS, FINDINGS, NO_FINDING, score_column
from schemas.quality import Quality
from schemas.rejects import ImageError, Reason
from schemas.tables import REJECTS_SCHEMA, scores_schema
from tests.fakes import collect, loaded_image, make_thresholds, manifest_row, picture

IDS = {"model_id": "0123456789ab", "thresholds_id": "ba9876543210"}
GRIDS = (np.arange(15 * 49, dtype=np.float32) / np.float32(735)).reshape(15, 7, 7)


def scored(scores=None, carried=()):
    """Returns an image with the scores given by finding, 0 where not."""
    vector = np.array([(scores or {}).get(name, 0) for name in FINDINGS], np.float32)
    loaded = loaded_image("a", picture())
    row = manifest_row("a", "/archive/a.png", carried)
    facts = dataclasses.replace(loaded.facts, quality=(Quality.LATERAL, Quality.BORDER))
    return ScoredImage(row, facts, vector, GRIDS, 6, 31.5)


def row_of(scores=None, threshold=0.5, carried=(), names=(), calibration=None, redact=False):
    vector = threshold_vector(make_thresholds(threshold))
    return score_row(scored(scores, carried), vector, calibration, IDS, names, redact)


def test_score_row_has_every_column_of_the_schema_in_order_and_no_other():
    row = row_of({"Mass": 0.75}, carried=("17", None), names=("patient_id", "site"))
    assert list(row) == scores_schema(("patient_id", "site")).names


def test_score_row_becomes_arrow_without_losing_anything():
    names = ("patient_id", "site")
    schema = scores_schema(names)
    scores = {"Mass": 0.75, "Hernia": 0.6, NO_FINDING: 0.1, "Edema": 0.3}
    before = datetime.datetime.now(datetime.UTC)
    row = row_of(scores, carried=("17", None), names=names)
    after = datetime.datetime.now(datetime.UTC)
    table = pa.Table.from_pylist([row], schema)
    table.validate(full=True)
    assert table.schema.equals(schema)
    [read] = table.to_pylist()
    assert before <= read.pop("scored_at") <= after
    mass, hernia = FINDINGS.index("Mass"), FINDINGS.index("Hernia")
    assert read == {
        "image_id": "a",
        "uri": "/archive/a.png",
        **{score_column(name): float(np.float32(scores.get(name, 0))) for name in FINDINGS},
        "abnormality": pytest.approx(1 - 0.25 * 0.4 * 0.7, abs=1e-7),
        "findings": ["Mass", "Hernia"],
        "flagged": True,
        "cams": [
            {"finding": "Mass", "grid": GRIDS[mass].ravel().tolist(), "overlay": None},
            {"finding": "Hernia", "grid": GRIDS[hernia].ravel().tolist(), "overlay": None},
        ],
        "tta_views": 6,
        "width": 224,
        "height": 224,
        "size_bytes": 1234,
        "source_version": "1700000000123456789",
        "content_sha256": "ab" * 32,
        "mean_intensity": 100.0,
        "std_intensity": 10.0,
        "quality": ["lateral", "border"],
        "feature_distance": 31.5,
        **IDS,
        "patient_id": "17",
        "site": None,
    }


def test_score_row_redacted_has_no_uri_and_all_else():
    redacted, plain = row_of({"Mass": 0.9}, redact=True), row_of({"Mass": 0.9})
    assert (redacted.pop("uri"), plain.pop("uri")) == (None, "/archive/a.png")
    for row in (redacted, plain):
        del row["scored_at"]
        row["cams"] = [cam["finding"] for cam in row["cams"]]
    assert redacted == plain


def test_score_row_grid_is_row_major():
    [cam] = row_of({"Nodule": 0.9})["cams"]
    first = 49 * FINDINGS.index("Nodule")
    assert len(cam["grid"]) == 49
    np.testing.assert_array_equal(
        cam["grid"], np.arange(first, first + 49, dtype=np.float32) / np.float32(735)
    )


@pytest.mark.parametrize("finding", ABNORMAL_FINDINGS)
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7001], ids=str)
def test_score_row_score_at_the_float32_threshold_is_flagged_and_below_is_not(finding, threshold):
    at = np.float32(threshold)
    assert row_of({finding: at}, threshold)["findings"] == [finding]
    below = row_of({finding: np.nextafter(at, np.float32(0))}, threshold)
    assert (below["findings"], below["flagged"], below["cams"]) == ([], False, [])


def test_score_row_threshold_of_each_finding_is_its_own():
    thresholds = make_thresholds(0.5)
    for index, name in enumerate(ABNORMAL_FINDINGS):
        thresholds[name] = dataclasses.replace(thresholds[name], threshold=(index + 1) / 16)
    image = scored(dict.fromkeys(FINDINGS, 0.5))
    row = score_row(image, threshold_vector(thresholds), None, IDS, (), False)
    # 8/16 is the eighth's: it and those before it are at or below the score.
    assert row["findings"] == list(ABNORMAL_FINDINGS[:8])


def test_score_row_no_finding_is_scored_and_never_flagged():
    row = row_of({NO_FINDING: 1.0}, threshold=0.0001)
    assert row["score_No_Finding"] == 1.0
    assert (row["findings"], row["flagged"], row["cams"]) == ([], False, [])
    assert row["abnormality"] == 0.0


def test_score_row_findings_and_maps_run_by_descending_score_with_ties_in_network_order():
    scores = {"Pneumothorax": 0.9, "Mass": 0.6, "Effusion": 0.95, "Atelectasis": 0.6, "Edema": 0.4}
    row = row_of(scores)
    expected = ["Effusion", "Pneumothorax", "Atelectasis", "Mass"]
    assert row["findings"] == expected
    assert [cam["finding"] for cam in row["cams"]] == expected
    assert row["flagged"] is True


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({}, 0.0),
        ({"Mass": 1.0, "Edema": 0.2}, 1.0),
        ({"Mass": 0.5, "Edema": 0.5}, 0.75),
        ({"Mass": 0.5, NO_FINDING: 0.75}, 0.5),
        (dict.fromkeys(ABNORMAL_FINDINGS, 0.125), 1 - 0.875**14),
    ],
    ids=["nothing", "certain", "two", "no_finding_does_not_count", "all_14"],
)
def test_score_row_abnormality_is_the_chance_of_any_of_the_14(scores, expected):
    assert row_of(scores)["abnormality"] == float(np.float32(expected))


def test_score_row_carried_values_come_last_by_name():
    row = row_of(carried=("17", None, "north"), names=("patient_id", "labels", "site"))
    assert list(row.items())[-3:] == [("patient_id", "17"), ("labels", None), ("site", "north")]


def test_score_row_carried_value_missing_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        row_of(carried=("17",), names=("patient_id", "site"))


def test_score_row_calibration_changes_the_abnormality_and_nothing_else():
    scores = {"Mass": 0.8, "Edema": 0.5, NO_FINDING: 0.9}
    # Odds of 4, to the power of 1/2, times 1/2: 1. The others keep their scores.
    scaling = Scaling(slope=0.5, intercept=-math.log(2))
    calibration = Calibration(dict.fromkeys(ABNORMAL_FINDINGS) | {"Mass": scaling})
    calibrated, plain = row_of(scores, calibration=calibration), row_of(scores)
    assert plain.pop("abnormality") == pytest.approx(1 - 0.2 * 0.5, abs=1e-7)
    assert calibrated.pop("abnormality") == pytest.approx(1 - 0.5 * 0.5, abs=1e-7)
    for row in (calibrated, plain):
        del row["scored_at"]
        row["cams"] = [cam["finding"] for cam in row["cams"]]
    assert calibrated == plain


@pytest.mark.parametrize(
    "calibration",
    [None, Calibration(dict.fromkeys(ABNORMAL_FINDINGS) | {"Mass": Scaling(2.0, 1.0)})],
    ids=["scores", "calibrated"],
)
def test_apply_thresholds_in_a_pipeline_gives_the_rows(calibration):
    images = [scored({"Mass": 0.5}, ("north",)), scored({"Mass": 0.49}, (None,))]

    def build(pipeline):
        transform = ApplyThresholds(
            make_thresholds(0.5),
            calibration=calibration,
            carried=("site",),
            redact_uris=True,
            **IDS,
        )
        return {"rows": pipeline | Create(images, reshuffle=False) | transform}

    rows = collect(build)["rows"]
    vector = threshold_vector(make_thresholds(0.5))
    expected = [score_row(image, vector, calibration, IDS, ("site",), True) for image in images]
    for row in rows + expected:
        del row["scored_at"]
        row["cams"] = [
            (cam["finding"], cam["grid"].tolist(), cam["overlay"]) for cam in row["cams"]
        ]
    assert rows == expected
    assert [(row["findings"], row["site"]) for row in rows] == [(["Mass"], "north"), ([], None)]


@pytest.mark.parametrize(
    ("reason", "stage", "size_bytes", "version", "attempts"),
    [
        (Reason.NOT_FOUND, "read", None, None, 1),
        (Reason.READ_TIMEOUT, "read", 2048, "1700000000123456789", 4),
        (Reason.TRUNCATED, "decode", 2048, "1700000000123456789", 2),
        (Reason.NON_FINITE_SCORE, "infer", 2048, "1700000000123456789", 1),
    ],
    ids=lambda value: str(value) if isinstance(value, Reason) else "",
)
def test_reject_row_says_where_and_why(reason, stage, size_bytes, version, attempts):
    row = manifest_row("a", "/archive/a.png", ("17",))
    error = ImageError(reason, "in words")
    image = RejectedImage(row, error, size_bytes, version, attempts)
    rejected = reject_row(image, False)
    assert reject_row(image, True) == {**rejected, "uri": None}
    assert list(rejected) == REJECTS_SCHEMA.names
    table = pa.Table.from_pylist([rejected], REJECTS_SCHEMA)
    table.validate(full=True)
    assert table.to_pylist() == [
        {
            "image_id": "a",
            "uri": "/archive/a.png",
            "stage": stage,
            "reason": reason.value,
            "detail": "in words",
            "attempts": attempts,
            "size_bytes": size_bytes,
            "source_version": version,
        }
    ]
