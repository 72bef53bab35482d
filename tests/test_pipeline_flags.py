"""New flags for many rows at once: what one image alone would get, and the maps that go along."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.thresholds import flagged_findings, threshold_vector
from pipeline.flags import missing_maps, order_flags, reflag, with_maps
from schemas.findings import FINDINGS, score_column
from schemas.tables import scores_schema
from tests.fakes import make_thresholds, picture, scores_of, varied_picture


def scores_table(levels):
    rows = [scores_of(name, picture(given)) for name, given in levels.items()]
    return pa.Table.from_pylist(rows, scores_schema())


TABLE = {
    "none": {},
    "two": {"Mass": 200, "Edema": 150, "Hernia": 100},
    "tie": {"Nodule": 140, "Mass": 140, "Atelectasis": 140},
    "one": {"Hernia": 129, "No Finding": 255},
}
"""Flagged at 0.5 are two, three and one of these; scores are 255ths."""


def test_order_flags_is_that_of_one_image_at_a_time_with_ties_and_equality():
    random = np.random.default_rng(0)
    # Few distinct scores: many ties, and many that equal a threshold.
    scores = random.integers(0, 8, (500, len(FINDINGS))).astype(np.float32) / np.float32(7)
    thresholds = dict.fromkeys(make_thresholds(), make_thresholds(3 / 7)["Mass"])
    vector = threshold_vector(thresholds)
    counts, findings = order_flags(scores, vector)
    found = [part.tolist() for part in np.split(findings, np.cumsum(counts)[:-1])]
    assert found == [flagged_findings(row, vector) for row in scores]
    assert (scores == np.float32(3 / 7)).any()


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.55, 1.0])
def test_reflag_gives_the_findings_of_a_fresh_row_and_its_own_maps(threshold):
    images = {f"i{k}": varied_picture(k) for k in range(30)} | {"none": picture()}
    rows = [scores_of(name, pixels) for name, pixels in images.items()]
    vector = threshold_vector(make_thresholds(threshold))
    new = reflag(pa.Table.from_pylist(rows, scores_schema()), vector, "new").table
    maps = {
        (row["image_id"], cam["finding"]): np.float32(cam["grid"])
        for row in rows
        for cam in row["cams"]
    }
    for old, row in zip(rows, new.to_pylist(), strict=True):
        scores = np.float32([old[score_column(name)] for name in FINDINGS])
        expected = [FINDINGS[index] for index in flagged_findings(scores, vector)]
        assert row["findings"] == [cam["finding"] for cam in row["cams"]] == expected
        assert row["flagged"] == bool(expected) and row["thresholds_id"] == "new"
        for cam in row["cams"]:
            known = maps.get((row["image_id"], cam["finding"]))
            assert np.array_equal(
                cam["grid"], np.full(49, np.nan) if known is None else known.ravel(), equal_nan=True
            )


def test_reflag_counts_findings_and_images_that_changed():
    thresholds = make_thresholds(0.5) | {
        "Mass": make_thresholds(0.9)["Mass"],
        "Hernia": make_thresholds(0.3)["Mass"],
    }
    counts = reflag(scores_table(TABLE), threshold_vector(thresholds), "new").counts
    # Mass goes from two and tie, Hernia comes to two.
    assert counts == {
        "flags_added": 1,
        "flags_removed": 2,
        "newly_flagged": 0,
        "no_longer_flagged": 0,
        "maps": 5,
    }
    all_off = reflag(scores_table(TABLE), threshold_vector(make_thresholds(1.0)), "new").counts
    assert (all_off["no_longer_flagged"], all_off["flags_removed"], all_off["maps"]) == (3, 6, 0)


def test_reflag_keeps_an_overlay_with_its_finding():
    table = scores_table(TABLE)
    rows = table.to_pylist()
    rows[1]["cams"][1]["overlay"] = "gradcam/run_id=r1/aa/two.Edema.jpg"
    table = pa.Table.from_pylist(rows, table.schema)
    new = reflag(table, threshold_vector(make_thresholds(0.3)), "new").table.to_pylist()
    assert [(cam["finding"], cam["overlay"]) for cam in new[1]["cams"]] == [
        ("Mass", None),
        ("Edema", "gradcam/run_id=r1/aa/two.Edema.jpg"),
        ("Hernia", None),
    ]


def test_missing_maps_are_filled_in_where_they_were_computed_and_only_there(tmp_path):
    low = threshold_vector(make_thresholds(0.3))
    # Through a file: what stands for an unknown map must come back from Parquet.
    pq.write_table(reflag(scores_table(TABLE), low, "new").table, tmp_path / "part.parquet")
    new = pq.ParquetFile(tmp_path / "part.parquet").read()
    assert missing_maps(new).to_pylist() == [
        {
            "image_id": "two",
            "uri": "/nowhere.png",
            "content_sha256": "ab" * 32,
            "findings": "Hernia",
        }
    ]
    grid = np.linspace(0, 1, 49, dtype=np.float32)
    computed = pa.table(
        {
            "image_id": ["two"],
            "findings": [["Hernia"]],
            "grids": pa.array([grid.tolist()], pa.list_(pa.float32())),
        }
    )
    filled = with_maps(new, computed)
    assert filled.schema == new.schema
    assert len(missing_maps(filled)) == 0
    before, after = new.to_pylist(), filled.to_pylist()
    assert np.float32(after[1]["cams"][2]["grid"]).tolist() == grid.tolist()
    after[1]["cams"][2] = before[1]["cams"][2]
    assert str(after) == str(before)  # in which NaN equals NaN


def test_reflag_of_no_rows_gives_no_rows():
    empty = reflag(scores_table({}), threshold_vector(make_thresholds()), "new")
    assert len(empty.table) == len(missing_maps(empty.table)) == empty.counts["maps"] == 0
