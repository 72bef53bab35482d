"""Every stage does its work, on the images that it was given."""

import csv

import numpy as np
import pytest

from model.bundle import demo_bundle_path
from pipeline import workbench
from pipeline.benchmark import measure_in_turn
from pipeline.workbench import BenchmarkOptions, Workbench
from schemas.errors import InputError


def options(manifest, **changes) -> BenchmarkOptions:
    values = {
        "manifest": str(manifest),
        "bundle": demo_bundle_path(),
        "images": 6,
        "repeats": 1,
        "batch_size": 4,
        "precision": "float32",
        "decode_threads": 2,
    }
    return BenchmarkOptions(**values | changes)


def test_workbench_measures_every_stage_on_the_images_of_the_manifest(
    phantoms, tmp_path, one_scorer
):
    bench = Workbench(options(phantoms / "manifest.csv"), tmp_path)
    names = [stage.name for stage in bench.stages()]
    found = measure_in_turn(bench.stages(), 1)

    assert names == ["decode", "inference", "inference, no maps", "overlays", "end to end"]
    assert set(found) == {*names, "end to end, published", "start"}
    assert {found[name].images for name in names if name != "overlays"} == {6}
    assert all(stage.rate > 0 for stage in found.values())
    assert len(list((tmp_path / "_staging/drawing").rglob("*.jpg"))) >= found["overlays"].images


def test_workbench_too_few_images_come_again_under_other_ids(phantoms, tmp_path, one_scorer):
    with open(phantoms / "manifest.csv", newline="") as file:
        uris = [str(phantoms / row["uri"]) for row in csv.DictReader(file)]
    bench = Workbench(options(phantoms / "manifest.csv", images=30), tmp_path)

    with open(bench.manifest, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["uri"] for row in rows] == (uris * 3)[:30]
    assert len({row["image_id"] for row in rows}) == 30


def test_workbench_image_in_a_compressed_archive_is_refused(tmp_path):
    (tmp_path / "list.csv").write_text("uri\nimages.tar.gz#a.png\n")

    with pytest.raises(InputError, match="row 1 of the manifest, in another archive. Unpack"):
        Workbench(options(tmp_path / "list.csv"), tmp_path)


def test_workbench_image_that_cannot_be_scored_is_named_by_its_row(tmp_path):
    (tmp_path / "good").mkdir()
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "list.csv").write_text("uri\nbad.png\n")

    with pytest.raises(InputError, match="row 1 of the manifest is rejected as not_an_image"):
        Workbench(options(tmp_path / "list.csv"), tmp_path / "good")


def test_workbench_without_maps_gives_the_scores_of_the_network(demo_scorer, squares):
    (scores,) = workbench._without_maps(options("-"))(squares)
    np.testing.assert_allclose(scores, demo_scorer.score(squares).scores, atol=1e-5)
