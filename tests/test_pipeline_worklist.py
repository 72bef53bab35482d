"""The worklist: the flagged images by rank, alike as CSV and as Parquet."""

import csv
import dataclasses

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.evaluation import abnormality_scores, any_abnormality, label_matrix
from model.score_table import read_labelled_scores
from pipeline.commit import share_of
from pipeline.urgency import load_urgency
from pipeline.worklist import Ranking, captured_findings, write_worklist
from schemas.findings import FINDINGS, score_column
from schemas.tables import WORKLIST_SCHEMA, read_metadata, scores_schema
from tests.fakes import make_thresholds, picture, read_rows, scores_of

METADATA = {"run_id": "r1"}


@pytest.fixture
def worklist(tmp_path):
    """Returns a function that ranks rows of the scores table: what both files then hold."""

    def write(*parts, limit=1000, carried=(), thresholds=None, **ranked):
        files = []
        for number, rows in enumerate(parts):
            files.append(str(tmp_path / f"part-{number:05d}.parquet"))
            pq.write_table(pa.Table.from_pylist(rows, scores_schema(carried)), files[-1])
        folder, ranking = tmp_path / "worklist", Ranking(limit, load_urgency(), **ranked)
        with duckdb.connect() as connection:
            write_worklist(
                connection, files, thresholds or make_thresholds(), ranking, folder, "r", METADATA
            )
        with open(folder / "r.csv", newline="", encoding="utf-8") as file:
            return read_rows([folder / "r.parquet"]), list(csv.DictReader(file))

    return write


def flagged(image_id, level=200, **changes):
    return scores_of(image_id, picture({"Mass": level}), f"/archive/{image_id}.png", **changes)


def f32(value):
    return float(np.float32(value))


def test_write_worklist_a_row_holds_all_there_is_to_say_of_an_image(worklist):
    row = scores_of("a", picture({"Mass": 204, "Edema": 250, "Hernia": 10}), "/archive/a.png")
    row["cams"][1]["overlay"] = "gradcam/run_id=r1/xx/a.Mass.jpg"
    row["quality"] = ["clipped", "border"]
    thresholds = make_thresholds(0.5)
    for name, value in (("Mass", 0.3), ("Edema", 0.7)):
        thresholds[name] = dataclasses.replace(thresholds[name], threshold=f32(value))
    parquet, table = worklist([row], thresholds=thresholds)
    assert parquet == [
        {
            "rank": 1,
            "image_id": "a",
            "abnormality": row["abnormality"],
            "urgency": 1,
            "findings": ["Edema", "Mass"],
            "scores": [f32(250 / 255), f32(204 / 255)],
            "thresholds": [f32(0.7), f32(0.3)],
            "overlays": [None, "gradcam/run_id=r1/xx/a.Mass.jpg"],
            "uri": "/archive/a.png",
            "quality": ["clipped", "border"],
            "gated": True,
        }
    ]
    assert table == [
        {
            "rank": "1",
            "image_id": "a",
            "abnormality": "0.996232",
            "urgency": "1",
            "findings": "Edema|Mass",
            "scores": "0.980392|0.800000",
            "thresholds": "0.700000|0.300000",
            "overlays": "|gradcam/run_id=r1/xx/a.Mass.jpg",
            "uri": "/archive/a.png",
            "quality": "clipped|border",
            "gated": "true",
        }
    ]
    assert row["abnormality"] == pytest.approx(0.996232, abs=5e-7)


def test_write_worklist_ranks_by_abnormality_and_ties_by_id_over_all_files(worklist):
    first = [flagged("d", 200), flagged("low", 130), flagged("c", 200)]
    second = [flagged("B", 200), flagged("top", 255), flagged("é", 200), flagged("a", 200)]
    parquet, table = worklist(first, second)
    expected = ["top", "B", "a", "c", "d", "é", "low"]
    assert [(row["rank"], row["image_id"]) for row in parquet] == list(enumerate(expected, 1))
    assert [(row["rank"], row["image_id"]) for row in table] == [
        (str(rank), image_id) for rank, image_id in enumerate(expected, 1)
    ]


@pytest.mark.parametrize(
    ("ranked", "expected"),
    [
        ({}, ["fair", "framed", "lateral", "blank"]),
        ({"urgent_first": True}, ["fair", "framed", "lateral", "blank"]),
        ({"gated_last": False}, ["lateral", "fair", "blank", "framed"]),
        ({"limit": 3}, ["fair", "framed", "lateral"]),
    ],
    ids=["flag", "urgent_first", "off", "budget"],
)
def test_write_worklist_images_not_to_be_believed_rank_behind_all_others(
    worklist, ranked, expected
):
    rows = [
        flagged("lateral", 250, quality=["lateral", "border"]),
        flagged("fair", 220),
        flagged("blank", 210, quality=["blank"]),
        flagged("framed", 200, quality=["border", "odd_aspect", "low_resolution"]),
    ]
    parquet, _ = worklist(rows, **ranked)
    assert [row["image_id"] for row in parquet] == expected
    assert [row["rank"] for row in parquet] == list(range(1, len(expected) + 1))
    gated = {row["image_id"] for row in parquet if row["gated"]}
    kept_apart = set() if "gated_last" in ranked else {"lateral", "blank"}
    assert gated == kept_apart & set(expected)


def test_write_worklist_urgent_first_ranks_by_the_most_urgent_finding_and_then_as_ever(worklist):
    rows = [
        scores_of(name, picture(levels), "")
        for name, levels in {
            "hernia": {"Hernia": 255},
            "mass": {"Mass": 200},
            "both": {"Edema": 140, "Hernia": 250},
            "edema": {"Edema": 150},
            "effusion": {"Effusion": 150},
        }.items()
    ]
    parquet, _ = worklist(rows, urgent_first=True)
    assert [(row["image_id"], row["urgency"]) for row in parquet] == [
        ("both", 1),
        ("edema", 1),
        ("effusion", 1),
        ("mass", 2),
        ("hernia", 4),
    ]
    parquet, _ = worklist(rows, limit=2)
    assert [row["image_id"] for row in parquet] == ["hernia", "both"]


def test_captured_findings_counts_what_a_budget_leaves_of_each(worklist, tmp_path):
    rows = [
        scores_of("a", picture({"Mass": 255, "Edema": 140}), ""),
        scores_of("b", picture({"Mass": 200}), ""),
        scores_of("c", picture({"Edema": 130, "Nodule": 129}), ""),
        scores_of("d", picture(0), ""),
    ]
    worklist(rows, limit=2)
    with duckdb.connect() as connection:
        found = captured_findings(
            connection, [str(tmp_path / "part-00000.parquet")], tmp_path / "worklist/r.parquet"
        )
    assert found == {
        "Edema": {"flagged": 2, "listed": 1},
        "Mass": {"flagged": 2, "listed": 2},
        "Nodule": {"flagged": 1, "listed": 0},
    }


def test_write_worklist_lists_flagged_images_alone(worklist):
    parquet, table = worklist([flagged("no", 127), flagged("yes", 128), flagged("none", 0)])
    assert [row["image_id"] for row in parquet] == ["yes"]
    assert [row["image_id"] for row in table] == ["yes"]


@pytest.mark.parametrize(("limit", "expected"), [(0, ""), (2, "ed"), (5, "edcba"), (9, "edcba")])
def test_write_worklist_limit_keeps_the_highest_ranks(worklist, limit, expected):
    rows = [flagged(name, 150 + number) for number, name in enumerate("abcde")]
    parquet, table = worklist(rows, limit=limit)
    assert [row["image_id"] for row in parquet] == list(expected)
    assert [row["image_id"] for row in table] == list(expected)


@pytest.mark.parametrize("rows", [[], [flagged("a", 0)]], ids=["no_row", "none_flagged"])
def test_write_worklist_nothing_to_list_gives_files_without_rows(worklist, tmp_path, rows):
    assert worklist(rows) == ([], [])
    header = (tmp_path / "worklist" / "r.csv").read_text().split()
    names = "rank,image_id,abnormality,urgency,findings,scores,thresholds,overlays,uri"
    assert header == [f"{names},quality,gated"]


@pytest.mark.parametrize("level", [200, 0], ids=["rows", "no_rows"])
def test_write_worklist_parquet_has_the_exact_schema_and_metadata(worklist, tmp_path, level):
    worklist([flagged("a", level)])
    schema = pq.read_schema(tmp_path / "worklist" / "r.parquet")
    assert schema.remove_metadata().equals(WORKLIST_SCHEMA)
    assert read_metadata(schema) == METADATA
    assert sorted(path.name for path in (tmp_path / "worklist").iterdir()) == ["r.csv", "r.parquet"]


def test_write_worklist_csv_says_what_parquet_does(worklist):
    levels = [{"Mass": 140 + k, "Edema": 100 + 3 * k, "Pneumothorax": 255 - k} for k in range(40)]
    rows = [scores_of(f"i{k}", picture(level)) for k, level in enumerate(levels)]
    for row in rows[::2]:
        row["cams"][0]["overlay"] = f"gradcam/{row['image_id']}.jpg"
    parquet, table = worklist(rows[:25], rows[25:])
    assert len(parquet) == 40

    def split(cell, convert):
        return [convert(part) for part in cell.split("|")]

    for said, row in zip(table, parquet, strict=True):
        assert said["image_id"] == row["image_id"] and said["uri"] == row["uri"]
        assert int(said["rank"]) == row["rank"]
        assert float(said["abnormality"]) == pytest.approx(row["abnormality"], abs=5e-7)
        assert said["findings"].split("|") == row["findings"]
        assert split(said["overlays"], lambda path: path or None) == row["overlays"]
        for name in ("scores", "thresholds"):
            assert split(said[name], float) == pytest.approx(row[name], abs=5e-7)


def test_write_worklist_csv_quotes_what_a_cell_may_hold(worklist):
    names = ['comma, "quote"', "two\nlines", "é;\t'"]
    _, table = worklist([flagged(name, 250 - number) for number, name in enumerate(names)])
    assert [row["image_id"] for row in table] == names
    assert [row["uri"] for row in table] == [f"/archive/{name}.png" for name in names]


@pytest.mark.parametrize("column", ["rank", "scores", "thresholds", "overlays", "f", "MAP"])
def test_write_worklist_carried_column_of_any_name_changes_nothing(worklist, column):
    rows = [flagged(name, level, **{column: "zzz"}) for name, level in (("a", 200), ("b", 220))]
    parquet, _ = worklist(rows, carried=(column,))
    found = [(row["rank"], row["image_id"], row["findings"], row["overlays"]) for row in parquet]
    assert found == [(1, "b", ["Mass"], [None]), (2, "a", ["Mass"], [None])]
    assert [row["scores"] for row in parquet] == [[f32(220 / 255)], [f32(200 / 255)]]
    assert [row["thresholds"] for row in parquet] == [[0.5], [0.5]]


@pytest.mark.parametrize("threshold", [0.0, 1.0, 1e-7, 0.25], ids=str)
def test_write_worklist_threshold_of_any_size_is_exact(worklist, threshold):
    thresholds = make_thresholds(0.5)
    thresholds["Mass"] = dataclasses.replace(thresholds["Mass"], threshold=threshold)
    parquet, _ = worklist([flagged("a", 255)], thresholds=thresholds)
    assert [row["thresholds"] for row in parquet] == [[f32(threshold)]]


def test_write_worklist_thresholds_are_the_runs_to_the_bit(worklist):
    thresholds = make_thresholds(0.5)
    thresholds["Mass"] = dataclasses.replace(thresholds["Mass"], threshold=f32(0.02))
    parquet, _ = worklist([flagged("a", 255)], thresholds=thresholds)
    assert [row["thresholds"] for row in parquet] == [[f32(0.02)]]


@pytest.fixture(scope="module")
def public_model(nih_labels):
    """The predictions of a public model for 22,433 images of the NIH, with their labels."""
    predictions = nih_labels.parent / "chexnet_predictions.csv.gz"
    if not predictions.exists():
        pytest.skip("needs real data: no chexnet_predictions.csv.gz beside the NIH labels")
    return read_labelled_scores(str(predictions), str(nih_labels), score_prefix="prob_")


@pytest.mark.parametrize("seed", [0, 1])
def test_write_worklist_top_fifth_of_a_public_model_holds_what_was_published(
    public_model, tmp_path, seed
):
    images = len(public_model)
    abnormality = abnormality_scores(public_model, public_model.scores)
    order = np.random.default_rng(seed).permutation(images)
    columns = {
        "image_id": np.array(public_model.image_ids)[order],
        "abnormality": abnormality[order],
        "flagged": np.ones(images, bool),
        "findings": [["Mass"]] * images,
        "cams": pa.nulls(images, scores_schema(()).field("cams").type),
        "uri": [""] * images,
        "quality": pa.nulls(images, pa.list_(pa.string())),
        **{score_column(finding): np.zeros(images, np.float32) for finding in FINDINGS},
    }
    path = tmp_path / "scores.parquet"
    pq.write_table(pa.table(columns), path)
    budget = int(share_of(0.2, images))
    with duckdb.connect() as connection:
        write_worklist(
            connection,
            [str(path)],
            make_thresholds(),
            Ranking(budget, load_urgency()),
            tmp_path / "w",
            "r",
            METADATA,
        )
    listed = pq.read_table(tmp_path / "w/r.parquet", partitioning=None)["image_id"].to_pylist()
    assert len(listed) == budget == 4486
    position = {image_id: number for number, image_id in enumerate(public_model.image_ids)}
    chosen = [position[image_id] for image_id in listed]
    # By abnormality and then by id, whatever the order of the rows.
    expected = np.lexsort((public_model.image_ids, -abnormality))[:budget]
    assert chosen == expected.tolist()
    is_abnormal = any_abnormality(public_model)
    pneumothorax = label_matrix(public_model)[:, FINDINGS.index("Pneumothorax")]
    assert is_abnormal[chosen].mean() == pytest.approx(0.786, abs=5e-4)
    assert is_abnormal[chosen].sum() / is_abnormal.sum() == pytest.approx(0.34, abs=5e-3)
    assert pneumothorax[chosen].sum() / pneumothorax.sum() == pytest.approx(0.42, abs=5e-3)
