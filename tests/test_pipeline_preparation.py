"""Decoding an archive once, for training."""

import json

import numpy as np
import pandas as pd
import pytest

from model.image_cache import open_cache
from model.preprocessing import prepare
from pipeline.commit import RejectLimitError
from pipeline.preparation import PrepareOptions, prepare_images, read_slots
from schemas.errors import InputError
from schemas.findings import FINDINGS
from tests.fakes import LOCAL, tree


def _options(manifest, cache, reject_limit=0.0):
    return PrepareOptions(str(manifest), str(cache), 2, reject_limit)


def test_prepare_images_gives_the_pixels_and_labels_of_the_manifest(phantoms, tmp_path):
    facts = prepare_images(_options(phantoms / "manifest.csv", tmp_path / "c"), LOCAL)
    assert (facts["images"], facts["rejected"]) == (12, 0)
    assert tree(tmp_path / "c") == ["cache.json", "images.parquet", "pixels.npy", "rejects.parquet"]
    manifest = pd.read_csv(phantoms / "manifest.csv")
    images = open_cache(tmp_path / "c").images
    assert isinstance(images.pixels, np.memmap)
    assert images.image_ids.tolist() == manifest["image_id"].tolist()
    assert images.patients.tolist() == manifest["patient_id"].tolist()
    assert set(images.view_positions) == {"PA"}
    for k, row in enumerate(manifest.itertuples()):
        expected = prepare((phantoms / row.uri).read_bytes()).pixels
        np.testing.assert_array_equal(images.squares(slice(k, k + 1))[0], expected)
        shown = {FINDINGS[j] for j in np.flatnonzero(images.labels[k])}
        assert shown == set(row.labels.split("|"))


def test_prepare_images_rejects_bad_files_and_keeps_their_neighbours(phantoms, tmp_path):
    manifest = pd.read_csv(phantoms / "manifest.csv")
    manifest["uri"] = [str(phantoms / uri) for uri in manifest["uri"]]
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    manifest.loc[3, "uri"] = str(bad)
    manifest.loc[7, "uri"] = str(tmp_path / "none.png")
    manifest.to_csv(tmp_path / "m.csv", index=False)
    facts = prepare_images(_options(tmp_path / "m.csv", tmp_path / "c", 0.2), LOCAL)
    assert facts["images"] == 10
    assert facts["rejected_by_reason"] == {"not_an_image": 1, "not_found": 1}
    images = open_cache(tmp_path / "c").images
    left = manifest.drop(index=[3, 7])
    assert images.image_ids.tolist() == left["image_id"].tolist()
    for k, uri in enumerate(left["uri"]):
        with open(uri, "rb") as file:
            expected = prepare(file.read()).pixels
        np.testing.assert_array_equal(images.squares(np.array([k]))[0], expected)
    rejects = pd.read_parquet(tmp_path / "c" / "rejects.parquet")
    assert rejects["image_id"].tolist() == manifest.loc[[3, 7], "image_id"].tolist()


def test_prepare_images_too_many_rejects_leaves_no_finished_cache(phantoms, tmp_path):
    manifest = pd.read_csv(phantoms / "manifest.csv")
    manifest["uri"] = str(tmp_path / "none.png")
    manifest.to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(RejectLimitError, match=r"12 of 12 images were rejected \(not_found 12\)"):
        prepare_images(_options(tmp_path / "m.csv", tmp_path / "c", 0.5), LOCAL)
    with pytest.raises(InputError, match="must be a finished cache"):
        open_cache(tmp_path / "c")


def test_prepare_images_finished_cache_is_used_as_it_is(phantoms, tmp_path):
    options = _options(phantoms / "manifest.csv", tmp_path / "c")
    first = prepare_images(options, LOCAL)
    (tmp_path / "c" / "pixels.npy").touch()
    before = (tmp_path / "c" / "pixels.npy").stat().st_mtime_ns
    assert prepare_images(options, LOCAL) == first
    assert (tmp_path / "c" / "pixels.npy").stat().st_mtime_ns == before


def test_prepare_images_cache_of_another_manifest_is_refused(phantoms, tmp_path):
    prepare_images(_options(phantoms / "manifest.csv", tmp_path / "c"), LOCAL)
    other = pd.read_csv(phantoms / "manifest.csv")
    other["uri"] = [str(phantoms / uri) for uri in other["uri"]]
    other["labels"] = "Mass"
    other.to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(InputError, match="must be made of the same manifest. Received: another"):
        prepare_images(_options(tmp_path / "m.csv", tmp_path / "c"), LOCAL)
    assert len(open_cache(tmp_path / "c").images) == 12


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("uri,patient_id\na.png,p\n", "must give labels for every image. Received: 1 without"),
        ("uri,labels\na.png,Mass\nb.png,Mass\n", "must give patient_id .* Received: 2 without"),
        ("uri,labels,patient_id\na.png,Flu,p\n", "labels must be names of findings.*'Flu'"),
        ("uri,labels,patient_id\na.png,No Finding|Mass,p\n", "must name 'No Finding' alone"),
    ],
    ids=["no labels", "no patients", "unknown label", "contradiction"],
)
def test_prepare_images_manifest_mistake_is_refused_before_any_image(tmp_path, content, message):
    (tmp_path / "m.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        prepare_images(_options(tmp_path / "m.csv", tmp_path / "c"), LOCAL)
    assert tree(tmp_path / "c") == []


def test_open_cache_of_another_contract_is_refused(phantoms, tmp_path):
    prepare_images(_options(phantoms / "manifest.csv", tmp_path / "c"), LOCAL)
    path = tmp_path / "c" / "cache.json"
    facts = json.loads(path.read_text())
    facts["input_contract"]["size"] = 96
    path.write_text(json.dumps(facts))
    with pytest.raises(InputError, match="under the contract grey-stretch-224-v2. Received"):
        open_cache(tmp_path / "c")


def test_read_slots_numbers_rows_through_all_groups(phantoms, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"image_id": list("abcde"), "uri": list("vwxyz")})
    pq.write_table(table, tmp_path / "m.parquet", row_group_size=2)
    rows = [row for group in range(3) for row in read_slots(str(tmp_path / "m.parquet"), group)]
    assert [(row.image_id, row.carried) for row in rows] == [
        (name, (str(k),)) for k, name in enumerate("abcde")
    ]
