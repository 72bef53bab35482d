"""`prescreen score` from end to end, with the real demonstration network."""

import csv
import json
import shutil

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from jobs.cli import cli
from model.bundle import demo_bundle_path, load_bundle_info, load_network, save_bundle
from model.thresholds import thresholds_to_json
from schemas.findings import ABNORMAL_FINDINGS, FINDINGS, score_column
from schemas.tables import read_metadata, scores_schema
from tests.bad_files import write_bad_files

_SCORES = [score_column(finding) for finding in FINDINGS]


def _score(manifest, output, *options):
    arguments = ["score", "--manifest", str(manifest), "--output", str(output), *options]
    return CliRunner().invoke(cli, arguments)


def _table(output, kind="scores"):
    return pd.read_parquet(output / kind)


def _manifest(path, rows, columns=("image_id", "uri")):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def run(phantoms, tmp_path_factory):
    """A run over the twelve phantoms: its output folder and what it printed."""
    output = tmp_path_factory.mktemp("run") / "results"
    result = _score(phantoms / "manifest.csv", output, "--run-id", "night", "--debug")
    assert result.exit_code == 0, result.output
    return output, result


def test_score_phantoms_every_row_is_scored_and_read_back(run, phantoms):
    output, _ = run
    with open(phantoms / "manifest.csv", newline="") as file:
        manifest = list(csv.DictReader(file))
    # In any order: an image that a busy machine holds up comes later.
    table = _table(output).set_index("image_id", drop=False)
    assert sorted(table["image_id"]) == sorted(row["image_id"] for row in manifest)
    table = table.loc[[row["image_id"] for row in manifest]]
    for name in ("patient_id", "view_position", "labels"):
        assert table[name].tolist() == [row[name] for row in manifest]
    assert set(table["width"]) == set(table["height"]) == {128}
    scores = table[_SCORES].to_numpy()
    assert np.isfinite(scores).all() and (scores >= 0).all() and (scores <= 1).all()


def test_score_phantoms_schema_is_the_published_one(run):
    output, _ = run
    file = pq.ParquetFile(output / "scores" / "run_id=night" / "part-00000.parquet")
    expected = scores_schema(("patient_id", "view_position", "labels"))
    assert file.schema_arrow.remove_metadata() == expected
    grid = expected.field("cams").type.value_type.field("grid").type
    assert grid == pa.list_(pa.float32(), 49)
    metadata = read_metadata(file.schema_arrow)
    info = load_bundle_info(demo_bundle_path())
    assert metadata["run_id"] == "night"
    assert metadata["model_id"] == info.model_id
    assert metadata["model_title"] == "Phantom-trained demonstration"
    assert metadata["input_contract"] == info.input_contract.to_json()


def test_score_phantoms_one_duckdb_query_reads_the_hive_layout(run):
    output, _ = run
    rows = duckdb.sql(
        f"SELECT run_id, count(*) FROM read_parquet('{output}/scores/**/*.parquet',"
        " hive_partitioning=true, union_by_name=true) GROUP BY run_id"
    ).fetchall()
    assert rows == [("night", 12)]


def test_score_phantoms_flags_and_overlays_follow_the_thresholds(run):
    output, _ = run
    thresholds = load_bundle_info(demo_bundle_path()).thresholds["none"]
    drawn = 0
    for row in _table(output).to_dict("records"):
        over = {
            finding: row[score_column(finding)]
            for finding in ABNORMAL_FINDINGS
            if np.float32(row[score_column(finding)]) >= np.float32(thresholds[finding].threshold)
        }
        assert list(row["findings"]) == sorted(over, key=over.get, reverse=True)
        assert row["flagged"] == bool(over)
        for cam in row["cams"]:
            if cam["overlay"]:
                drawn += 1
                with Image.open(output / cam["overlay"]) as overlay:
                    assert overlay.format == "JPEG" and max(overlay.size) <= 512
    record = json.loads((output / "runs" / "night.json").read_text())
    assert drawn == record["counts"]["overlays"] > 0


def test_score_phantoms_worklist_is_ranked_by_abnormality(run):
    output, _ = run
    table = _table(output)
    expected = table[table["flagged"]].sort_values(
        ["abnormality", "image_id"], ascending=[False, True]
    )
    worklist = pd.read_parquet(output / "worklist" / "run_id=night.parquet")
    assert worklist["image_id"].tolist() == expected["image_id"].tolist()
    assert worklist["rank"].tolist() == list(range(1, len(expected) + 1))


def test_score_prints_where_the_results_are_and_what_the_model_is(run):
    output, result = run
    assert "12 images in the manifest, 12 scored, 0 rejected" in result.stdout
    assert str(output / "worklist" / "run_id=night.csv") in result.stdout
    assert "Phantom-trained demonstration" in result.stdout
    assert "FnApiRunner" in result.stdout
    assert "Scoring 12 images on FnApiRunner" in result.stderr


def test_score_direct_runner_is_named_as_what_runs(phantoms, tmp_path):
    result = _score(
        phantoms / "manifest.csv", tmp_path / "out", "--quiet", "--run-id", "r",
        "--", "--runner=DirectRunner",
    )  # fmt: skip
    assert (result.exit_code, result.output) == (0, "")
    record = json.loads((tmp_path / "out" / "runs" / "r.json").read_text())
    assert record["runner"] == "FnApiRunner"


def test_score_any_order_and_batch_size_gives_the_same_rows(run, phantoms, tmp_path):
    output, _ = run
    with open(phantoms / "manifest.csv", newline="") as file:
        header, *rows = csv.reader(file)
    shuffled = [rows[k] for k in np.random.default_rng(5).permutation(len(rows))]
    manifest = _manifest(phantoms / "shuffled.csv", shuffled, header)
    result = _score(manifest, tmp_path / "out", "--batch-size", "7", "--decode-threads", "3")
    assert result.exit_code == 0, result.output
    one = _table(output).set_index("image_id").sort_index()
    other = _table(tmp_path / "out").set_index("image_id").sort_index()
    np.testing.assert_allclose(one[_SCORES], other[_SCORES], atol=1e-5)
    same = ["uri", "content_sha256", "mean_intensity", "findings", "labels", "source_version"]
    for name in same:
        assert one[name].map(str).tolist() == other[name].map(str).tolist()


def test_score_grey_and_rgba_png_of_one_picture_give_the_same_row(phantoms, tmp_path):
    source = sorted((phantoms / "images").glob("*.png"))[0]
    with Image.open(source) as image:
        image.save(tmp_path / "grey.png")
        image.convert("RGBA").save(tmp_path / "rgba.png")
    manifest = _manifest(tmp_path / "m.csv", [("a", "grey.png"), ("b", "rgba.png")])
    assert _score(manifest, tmp_path / "out").exit_code == 0
    grey, rgba = _table(tmp_path / "out").sort_values("image_id").to_dict("records")
    for name in ("mean_intensity", "std_intensity", "width", "height"):
        assert grey[name] == rgba[name]
    # The same pixels; their places in the batch may round the last bit differently.
    for name in (*_SCORES, "abnormality"):
        assert grey[name] == pytest.approx(rgba[name], abs=1e-6)
    assert list(grey["findings"]) == list(rgba["findings"])


def test_score_bad_files_are_rejects_and_their_neighbours_are_untouched(phantoms, tmp_path):
    expected = write_bad_files(tmp_path)
    assert len(expected) >= 14
    good = sorted((phantoms / "images").iterdir())
    rows = [(f"good-{k}", str(path)) for k, path in enumerate(good)]
    for number, name in enumerate(expected):
        rows.insert(2 * number, (name, name))
    manifest = _manifest(tmp_path / "m.csv", rows)

    refused = _score(manifest, tmp_path / "out", "--run-id", "a")
    assert refused.exit_code == 3
    assert f"{len(expected)} of {len(rows)} images were rejected" in refused.stderr
    assert not (tmp_path / "out" / "scores").exists()
    assert not (tmp_path / "out" / "runs").exists()

    result = _score(manifest, tmp_path / "out", "--run-id", "b", "--reject-limit", "1")
    assert result.exit_code == 0, result.output
    rejects = _table(tmp_path / "out", "rejects").set_index("image_id")
    assert rejects["reason"].to_dict() == {name: str(why) for name, why in expected.items()}
    assert rejects["stage"].to_dict() == {name: str(why.stage) for name, why in expected.items()}
    assert sorted(_table(tmp_path / "out")["image_id"]) == sorted(f"good-{k}" for k in range(12))


def test_score_nothing_but_rejects_publishes_an_empty_scores_table(tmp_path):
    manifest = _manifest(tmp_path / "m.csv", [("a", "nowhere.png")])
    result = _score(manifest, tmp_path / "out", "--run-id", "r", "--reject-limit", "1")
    assert result.exit_code == 0, result.output
    assert len(pd.read_parquet(tmp_path / "out" / "scores" / "run_id=r")) == 0
    assert _table(tmp_path / "out", "rejects")["reason"].tolist() == ["not_found"]


@pytest.mark.parametrize("tta", ["borderline", "all"])
def test_score_tta_uses_the_thresholds_of_its_mode(phantoms, tmp_path, tta):
    result = _score(phantoms / "manifest.csv", tmp_path / "out", "--tta", tta, "--run-id", "r")
    assert result.exit_code == 0, result.output
    views = _table(tmp_path / "out")["tta_views"]
    assert set(views) <= {1, 6} and (tta == "borderline" or set(views) == {6})
    record = json.loads((tmp_path / "out" / "runs" / "r.json").read_text())
    expected = load_bundle_info(demo_bundle_path()).thresholds[tta]
    assert record["thresholds"] == {name: value.threshold for name, value in expected.items()}


def test_score_options_change_what_is_carried_listed_and_drawn(phantoms, tmp_path):
    with open(phantoms / "manifest.csv", newline="") as file:
        header, *rows = csv.reader(file)
    manifest = _manifest(
        phantoms / "ward.csv", [[*row, f"ward {k}"] for k, row in enumerate(rows)],
        [*header, "ward"],
    )  # fmt: skip
    thresholds = load_bundle_info(demo_bundle_path()).thresholds["none"]
    values = thresholds_to_json(thresholds)
    for value in values.values():
        value["threshold"] = 0.0
    (tmp_path / "t.json").write_text(json.dumps({"tta": "none", "findings": values}))
    result = _score(
        manifest, tmp_path / "out", "--run-id", "r", "--carry", "ward",
        "--thresholds", str(tmp_path / "t.json"), "--review-budget", "0.25",
        "--gradcam-top", "2", "--gradcam-limit", "5",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    table = _table(tmp_path / "out")
    assert table["ward"].tolist() == [f"ward {k}" for k in range(12)]
    assert table["findings"].map(len).tolist() == [14] * 12
    counts = json.loads((tmp_path / "out" / "runs" / "r.json").read_text())["counts"]
    assert (counts["flagged"], counts["listed"], counts["drawn"]) == (12, 3, 5)
    undrawn = counts["not_drawn"].get("no_attention", 0)
    assert counts["overlays"] == 10 - undrawn


def _refused(tmp_path, arguments, message, code=2):
    result = CliRunner().invoke(cli, ["score", *arguments])
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("out/_staging/*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("image_id,path\na,b.png\n", "must have a column 'uri'", id="column"),
        pytest.param("image_id,uri\na,b.png\na,c.png\n", "image_id must be unique", id="ids"),
        pytest.param("image_id,uri\n", "must have at least one row", id="no rows"),
        pytest.param("", "must have at least one row", id="empty"),
    ],
)
def test_score_bad_manifest_exits_2_before_an_image_is_read(tmp_path, content, message):
    (tmp_path / "m.csv").write_text(content)
    arguments = ["--manifest", str(tmp_path / "m.csv"), "--output", str(tmp_path / "out")]
    _refused(tmp_path, arguments, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--run-id", "7up"], "--run-id must be a letter", id="run id"),
        pytest.param(["--run-id", "a/../b"], "--run-id must be a letter", id="path in run id"),
        pytest.param(["--model", "nowhere"], "A bundle must be a folder", id="bundle"),
        pytest.param(["--thresholds", "nowhere"], "must be a readable JSON", id="thresholds"),
        pytest.param(["--carry", "ward"], "carry must name a column", id="carry"),
        pytest.param(["--review-budget", "1.5"], "not from 0.0 to 1.0", id="budget"),
        pytest.param(["--review-budget", "many"], "neither a share", id="budget text"),
        pytest.param(["--batch-size", "0"], "0 is not in the range", id="batch size"),
        pytest.param(["--workers", "0"], "0 is not in the range", id="workers"),
        pytest.param(
            ["--workers", "2", "--", "--runner=SparkRunner"],
            "--workers must be 1 with --runner=SparkRunner",
            id="workers elsewhere",
        ),
        pytest.param(["--", "--runner=DaskRunner"], "which loses rows", id="dask"),
    ],
)
def test_score_bad_option_exits_2_before_an_image_is_read(phantoms, tmp_path, options, message):
    arguments = ["--manifest", str(phantoms / "manifest.csv"), "--output", str(tmp_path / "out")]
    _refused(tmp_path, arguments + options, message)


def test_score_output_on_a_store_without_locks_is_refused(phantoms, tmp_path):
    arguments = ["--manifest", str(phantoms / "manifest.csv"), "--output", "s3://bucket/x"]
    _refused(tmp_path, arguments, "--output must be a local folder, or a place on Google Cloud")


def test_score_output_that_reads_as_a_pattern_is_refused(phantoms, tmp_path):
    arguments = ["--manifest", str(phantoms / "manifest.csv"), "--output", str(tmp_path / "a?b")]
    _refused(tmp_path, arguments, "--output must not hold characters of a pattern")


def test_score_run_id_that_is_there_exits_2_and_leaves_it(run, phantoms):
    output, _ = run
    before = (output / "runs" / "night.json").read_bytes()
    result = _score(phantoms / "manifest.csv", output, "--run-id", "night")
    assert result.exit_code == 2
    assert "--run-id must be new in --output. Received: night" in result.stderr
    assert (output / "runs" / "night.json").read_bytes() == before
    assert not (output / "_staging" / "night").exists()


def test_score_tta_mode_without_thresholds_exits_2(phantoms, tmp_path):
    import dataclasses

    info = load_bundle_info(demo_bundle_path())
    only = dataclasses.replace(
        info, thresholds={"none": info.thresholds["none"]}, feature_reference=None
    )
    save_bundle(load_network(demo_bundle_path()), only, str(tmp_path / "bundle"))
    arguments = [
        "--manifest", str(phantoms / "manifest.csv"), "--output", str(tmp_path / "out"),
        "--model", str(tmp_path / "bundle"), "--tta", "all",
    ]  # fmt: skip
    _refused(tmp_path, arguments, "--tta must be a mode that the bundle has thresholds for: none")


def test_score_tampered_bundle_exits_2(phantoms, tmp_path):
    shutil.copytree(demo_bundle_path(), tmp_path / "bundle")
    with open(tmp_path / "bundle" / "model.keras", "r+b") as file:
        file.seek(5000)
        file.write(b"tampered")
    arguments = [
        "--manifest", str(phantoms / "manifest.csv"), "--output", str(tmp_path / "out"),
        "--model", str(tmp_path / "bundle"),
    ]  # fmt: skip
    _refused(tmp_path, arguments, "must have the digest that bundle.json names")


def test_score_real_images_and_bad_files_nothing_is_lost(nih_images, tmp_path):
    expected = write_bad_files(tmp_path)
    rows = [(path.name, str(path)) for path in nih_images] + [(n, n) for n in expected]
    manifest = _manifest(tmp_path / "m.csv", rows)
    result = _score(
        manifest, tmp_path / "out", "--run-id", "r", "--reject-limit", "0.2",
        "--gradcam-limit", "10",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    counts = json.loads((tmp_path / "out" / "runs" / "r.json").read_text())["counts"]
    assert counts["manifest"] == len(rows)
    assert (counts["scored"], counts["rejected"]) == (200, len(expected))
    assert sorted(_table(tmp_path / "out")["image_id"]) == [path.name for path in nih_images]
    rejects = _table(tmp_path / "out", "rejects").set_index("image_id")
    assert rejects["reason"].to_dict() == {name: str(why) for name, why in expected.items()}
