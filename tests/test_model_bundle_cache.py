"""A bundle on a store is the bundle: downloaded once, and never another one's scores."""

import json
from pathlib import Path

import pytest

from model.bundle import bundle_files, demo_bundle_path, load_bundle_info, load_network
from model.object_store import ObjectFolder
from schemas.errors import InputError
from tests.gcs import BUCKET

URI = f"gs://{BUCKET}/models/demo"


@pytest.fixture
def bundle(store):
    folder, demo = ObjectFolder(URI), Path(demo_bundle_path())
    folder.upload((demo / name, name) for name in bundle_files(demo))
    return folder


def downloads(store):
    return [path for method, path in store.requests if "model.keras" in path and "media" in path]


def test_bundle_on_a_store_is_the_local_one_and_downloaded_once(store, bundle):
    assert load_bundle_info(URI) == load_bundle_info(demo_bundle_path())
    assert load_bundle_info(f"{URI}/") == load_bundle_info(demo_bundle_path())
    assert load_network(URI).count_params() == load_network(demo_bundle_path()).count_params()
    assert len(downloads(store)) == 1


def test_bundle_on_a_store_changed_is_not_the_cached_one(store, bundle):
    load_bundle_info(URI)
    changed = json.loads(bundle.read("bundle.json")) | {"title": "another"}
    bundle.write("bundle.json", json.dumps(changed).encode())
    assert load_bundle_info(URI).title == "another"


def test_bundle_on_a_store_damaged_network_is_refused(store, bundle):
    bundle.write("model.keras", b"damaged")
    with pytest.raises(InputError, match="must have the digest"):
        load_bundle_info(URI)


@pytest.mark.parametrize("missing", ["bundle.json", "model.keras"])
def test_bundle_on_a_store_incomplete_is_refused_by_name(store, bundle, missing, tmp_path):
    bundle.delete([missing])
    with pytest.raises(InputError, match=f"Received: {URI} .no such object"):
        load_bundle_info(URI)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
