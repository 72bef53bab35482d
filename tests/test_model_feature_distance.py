"""The distance from the training data: fitted, kept in a bundle, measured in the graph."""

import copy
import dataclasses
import hashlib
import json
import time

import numpy as np
import pytest
import scipy.spatial.distance
from sklearn.covariance import LedoitWolf

from model import serving
from model.bundle import bundle_files, copy_bundle, load_bundle_info, load_features, save_bundle
from model.feature_distance import FEATURES, QUANTILES, FeatureDistance, read_features
from model.feature_fitting import fit_distance, fit_feature_distance
from model.image_cache import LabelledImages
from model.scorer import Scorer
from schemas.errors import InputError
from tests.fakes import make_bundle


def images_of(squares):
    """Returns a part of some data without labels."""
    count = len(squares)
    names = np.array([str(k) for k in range(count)])
    labels = np.zeros((count, 15), bool)
    return LabelledImages(squares, np.arange(count), labels, names, names, names)


@pytest.fixture(scope="module")
def fitted(demo_network, squares):
    """The distance of the demonstration network, from thirty phantoms and ten others."""
    return fit_feature_distance(demo_network, images_of(squares[:30]), images_of(squares[30:]), 0)


@pytest.fixture(scope="module")
def measuring(demo_network, fitted):
    """The demonstration network, frozen, with its distance."""
    return Scorer(demo_network, distance=fitted[0])


@pytest.fixture(scope="module")
def features():
    """float32 `(60, 90)`, each with another mean and some depending on others."""
    noise = np.random.default_rng(3).normal(size=(60, 90))
    return (noise + 0.5 * np.roll(noise, 1, axis=1) + np.arange(90)).astype(np.float32)


def test_distance_leaves_the_cores_to_others_afterwards():
    distance = FeatureDistance(np.zeros(FEATURES, np.float32), np.eye(FEATURES, dtype=np.float32))
    features = np.ones((32, FEATURES), np.float32)
    spent = []
    for _ in range(5):
        distance.of(features)
        before = time.process_time()
        time.sleep(0.05)
        spent.append(time.process_time() - before)
    # Threads of OpenBLAS in wait of more work would take 25 ms a core.
    assert min(spent) < 0.005


def test_fit_distance_is_mahalanobis_with_the_shrunk_covariance(features):
    distance, shrinkage = fit_distance(features[:50])
    rows = features.astype(np.float64)
    rows /= np.sqrt((rows**2).sum(axis=1, keepdims=True))
    scaled = (rows - rows[:50].mean(axis=0)) / rows[:50].std(axis=0)
    reference = LedoitWolf().fit(scaled[:50])
    assert shrinkage == pytest.approx(reference.shrinkage_) and 0 < shrinkage < 1
    inverse = np.linalg.inv(reference.covariance_)
    expected = [
        scipy.spatial.distance.mahalanobis(one, reference.location_, inverse) for one in scaled[50:]
    ]
    np.testing.assert_allclose(distance.of(features[50:]), expected, rtol=1e-5)
    assert (distance.mean.dtype, distance.whitening.dtype) == (np.float32, np.float32)


def test_fit_feature_distance_measures_its_quantiles_on_the_validation_part(
    fitted, measuring, squares
):
    _, reference = fitted
    assert (reference.images, reference.fitted_on_images) == (10, 30)
    assert list(reference.quantiles) == list(QUANTILES)
    scored = measuring.score(squares)
    expected = [np.quantile(scored.distances[30:], float(name)) for name in QUANTILES]
    np.testing.assert_allclose(list(reference.quantiles.values()), expected, rtol=1e-4)
    assert scored.distances.dtype == np.float32 and scored.distances.shape == (40,)
    # What was fitted is nearer than what was not, which is why the quantiles are of the latter.
    assert scored.distances[:30].mean() < scored.distances[30:].mean()


def test_scorer_distance_changes_no_score_and_is_of_the_original_view(
    measuring, demo_scorer, squares
):
    plain = demo_scorer.score(squares[:4])
    assert plain.distances is None
    single, six = measuring.score(squares[:4]), copy.copy(measuring)
    six._tta_mode = "all"  # the graph is the same
    all_views = six.score(squares[:4])
    assert all_views.views.tolist() == [6] * 4
    np.testing.assert_allclose(single.scores, plain.scores, atol=1e-6)
    np.testing.assert_allclose(single.cams, plain.cams, atol=1e-5)
    np.testing.assert_allclose(all_views.distances, single.distances, rtol=1e-5)
    one = measuring.score(squares[2:3])
    np.testing.assert_allclose(one.distances, single.distances[2:3], rtol=1e-4)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, demo_network, fitted):
    """A bundle with a distance: its folder, and what was saved."""
    folder = tmp_path_factory.mktemp("distance") / "bundle"
    info = dataclasses.replace(make_bundle(), feature_reference=fitted[1])
    return folder, save_bundle(demo_network, info, str(folder), fitted[0])


def test_bundle_keeps_the_distance_and_its_id(bundle, fitted, tmp_path):
    folder, saved = bundle
    assert load_bundle_info(str(folder)) == saved
    assert saved.model_id == dataclasses.replace(saved, feature_reference=None).model_id
    assert bundle_files(str(folder)) == ("bundle.json", "model.keras", "features.npz")
    loaded = load_features(str(folder), saved.feature_reference.sha256)
    np.testing.assert_array_equal(loaded.mean, fitted[0].mean)
    np.testing.assert_array_equal(loaded.whitening, fitted[0].whitening)
    copy_bundle(str(folder), str(tmp_path / "copy"), saved)
    assert load_bundle_info(str(tmp_path / "copy")) == saved
    other = FeatureDistance(fitted[0].mean + 1, fitted[0].whitening)
    copy_bundle(str(folder), str(tmp_path / "other"), saved, other)
    found = load_bundle_info(str(tmp_path / "other"))
    assert found.feature_reference.sha256 != saved.feature_reference.sha256
    assert found.model_id == saved.model_id


def test_bundle_from_before_has_no_distance(bundle, tmp_path):
    folder, saved = bundle
    copy_bundle(str(folder), str(tmp_path / "old"), saved)
    values = json.loads((tmp_path / "old/bundle.json").read_text())
    del values["feature_distance"]
    (tmp_path / "old/bundle.json").write_text(json.dumps(values))
    (tmp_path / "old/features.npz").unlink()
    info = load_bundle_info(str(tmp_path / "old"))
    assert info == dataclasses.replace(saved, feature_reference=None)
    assert bundle_files(str(tmp_path / "old")) == ("bundle.json", "model.keras")
    settings = serving.scorer_settings("old", info, tta="none", precision="float32")
    assert settings.feature_distance is None and not settings.is_far(None)


def test_scorer_settings_far_is_above_the_last_quantile(bundle, fitted):
    folder, saved = bundle
    settings = serving.scorer_settings(str(folder), saved, tta="none", precision="float32")
    limit = fitted[1].quantiles["0.999"]
    assert settings.feature_distance == (saved.feature_reference.sha256, limit)
    assert not settings.is_far(limit) and settings.is_far(np.nextafter(limit, np.inf))


def _damaged(content: bytes) -> bytes:
    return content[:-200] + bytes([content[-200] ^ 1]) + content[-199:]


@pytest.mark.parametrize(
    ("change", "message"),
    [(_damaged, "must have the digest that bundle.json names"), (None, "Restore the bundle")],
    ids=["damaged", "missing"],
)
def test_bundle_with_another_features_file_is_refused(bundle, tmp_path, change, message):
    folder, saved = bundle
    copy_bundle(str(folder), str(tmp_path / "bad"), saved)
    path = tmp_path / "bad/features.npz"
    content = path.read_bytes()
    path.unlink()
    if change:
        path.write_bytes(change(content))
    with pytest.raises(InputError, match=message):
        load_bundle_info(str(tmp_path / "bad"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mean": np.zeros(3, np.float32), "triangle": np.zeros(6, np.float32)}, "shapes"),
        ({"mean": np.zeros(FEATURES, np.float32)}, "KeyError"),
        ({"mean": np.array([{}]), "triangle": np.array([{}])}, "ValueError"),
        ({"mean": np.zeros(FEATURES), "triangle": np.zeros(819840)}, "float64"),
        ({"mean": np.full(FEATURES, np.nan, "f"), "triangle": np.zeros(819840, "f")}, "not finite"),
    ],
    ids=["shape", "lacking", "pickle", "dtype", "nan"],
)
def test_read_features_of_something_else_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "features.npz", **arrays)
    digest = hashlib.sha256((tmp_path / "features.npz").read_bytes()).hexdigest()
    with pytest.raises(InputError, match=message):
        read_features(tmp_path, digest)


def test_save_bundle_that_names_a_distance_without_one_is_refused(bundle, demo_network, tmp_path):
    _, info = bundle
    with pytest.raises(ValueError, match="distance must be given where info has"):
        save_bundle(demo_network, info, str(tmp_path / "bundle"))
    assert list(tmp_path.iterdir()) == []
