"""The seed's graph, labels and thresholds; and its scores, where Keras 2 has been at work."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from model.bundle import load_bundle_info, load_network, save_bundle
from model.network import IMAGENET_STD, build_network
from model.preprocessing import prepare
from model.scorer import Scorer
from model.seed_import import (
    SeedFiles,
    check_labels,
    grey_levels_left,
    import_seed,
    read_thresholds,
    seed_scaling,
)
from model.seed_weights import SeedWeights
from schemas.errors import InputError
from schemas.findings import ABNORMAL_FINDINGS, FINDINGS
from tests.seed_files import MEAN, VARIANCE, keras_2_weights, write_seed_pickles, write_weights

_REFERENCE = Path(__file__).parents[1] / "build" / "seed_reference"
_LABELS = {name: index for index, name in enumerate(FINDINGS)}
_THRESHOLDS = dict.fromkeys(FINDINGS, 0.25)
_WEIGHTS = SeedWeights({}, MEAN, VARIANCE, whole_model=False, second_rescaling=True)


def _as_keras_2(graph: str) -> np.ndarray:
    """Returns float32 `(256, 3)`: every grey level, layer by layer as the seed's graph has it."""
    x = np.repeat(np.arange(256, dtype=np.float32)[:, np.newaxis], 3, axis=1) / np.float32(255)
    x = x * np.float32(1 / 255)
    x = (x - MEAN) / np.maximum(np.sqrt(VARIANCE), np.float32(1e-7))
    return x / np.sqrt(np.float32(IMAGENET_STD)) if graph == "evaluated" else x


@pytest.mark.parametrize("graph", ["evaluated", "demo"])
def test_seed_scaling_every_grey_level_is_as_in_the_seeds_layers(graph):
    scaling = seed_scaling(_WEIGHTS, graph)
    levels = np.arange(256)[:, np.newaxis]
    scaled = np.float32(levels * np.array(scaling.scale) + scaling.offset)
    # Some units in the last place of numbers around 2.
    np.testing.assert_allclose(scaled, _as_keras_2(graph), atol=5e-7)


def test_seed_scaling_graphs_differ_by_rescaling_1_alone():
    evaluated, demo = (seed_scaling(_WEIGHTS, graph) for graph in ("evaluated", "demo"))
    np.testing.assert_allclose(np.divide(demo.scale, evaluated.scale), np.sqrt(IMAGENET_STD))
    np.testing.assert_allclose(np.divide(demo.offset, evaluated.offset), np.sqrt(IMAGENET_STD))


def test_seed_scaling_variance_of_zero_divides_by_kerass_epsilon():
    weights = SeedWeights({}, MEAN, np.zeros(3, np.float32), False, None)
    scaling = seed_scaling(weights, "demo")
    np.testing.assert_allclose(scaling.scale, 1e7 / 255**2)


def test_grey_levels_left_double_scaling_half_precision_loses_nearly_all():
    left = grey_levels_left(seed_scaling(_WEIGHTS, "evaluated"))
    assert left["float32"] == [256, 256, 256]
    assert left["mixed_float16"] == [9, 10, 19]
    assert max(left["mixed_bfloat16"]) <= 3


@pytest.mark.parametrize(
    "labels",
    [
        _LABELS,
        {name.replace("_", " "): np.int64(index) for name, index in _LABELS.items()},
        {name.replace(" ", "_"): index for name, index in reversed(_LABELS.items())},
        list(FINDINGS),
        FINDINGS,
        np.array(FINDINGS),
    ],
    ids=["dict", "spaces", "reversed", "list", "tuple", "array"],
)
def test_check_labels_order_of_findings_passes(labels):
    check_labels(labels, "labels.pkl")


_SWAPPED = _LABELS | {"Mass": 10, "No Finding": 9}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (_SWAPPED, "must give index 9 to 'Mass', findings being in alphabetical order."),
        (_SWAPPED, "Received: 'No Finding'."),
        (list(FINDINGS[:14]), "must give index 14 to 'Pneumothorax'"),
        ({**_LABELS, "Covid": 15}, "labels.pkl must hold 15 findings. Received: 16."),
        ({**_LABELS, "Covid": 14}, "an index of its own. Received: 14 for 'Covid'."),
        ({**_LABELS, "Mass": "9"}, "an index of its own. Received: '9' for 'Mass'."),
        (dict(enumerate(FINDINGS)), "an index of its own. Received: 'Atelectasis' for 0."),
        (np.arange(15), "must give index 0 to 'Atelectasis'"),
        (7, "a dict from finding to index, or a list of findings. Received: int."),
        ("Edema", "Received: str."),
        (np.array("Edema"), "Received: ndarray."),
    ],
)
def test_check_labels_anything_else_is_refused(labels, message):
    with pytest.raises(InputError) as caught:
        check_labels(labels, "labels.pkl")
    assert message in str(caught.value)


def test_read_thresholds_values_are_float32_and_the_rest_is_unknown():
    values = {name.replace("_", " "): np.float64(0.1) for name in FINDINGS}
    thresholds = read_thresholds(values, "t.pkl")
    assert tuple(thresholds) == ABNORMAL_FINDINGS
    for threshold in thresholds.values():
        assert threshold.threshold == np.float32(0.1)
        assert threshold.rule == "imported"
        unknown = (threshold.recall, threshold.recall_low, threshold.recall_high)
        assert unknown == (None, None, None)
        assert (threshold.precision, threshold.positives, threshold.interval) == (None, None, None)


def test_read_thresholds_without_no_finding_are_enough():
    values = dict.fromkeys(ABNORMAL_FINDINGS, 0)
    assert tuple(read_thresholds(values, "t.pkl")) == ABNORMAL_FINDINGS


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({k: v for k, v in _THRESHOLDS.items() if k != "Edema"}, "given twice Edema."),
        ({**_THRESHOLDS, "Covid": 0.5}, "given twice Covid."),
        ({**_THRESHOLDS, "Pleural Thickening": 0.5}, "given twice Pleural_Thickening."),
        ({**_THRESHOLDS, "Mass": 1.5}, "threshold of Mass must be a number from 0 to 1"),
        ({**_THRESHOLDS, "Mass": float("nan")}, "Received: nan."),
        ({**_THRESHOLDS, "Mass": True}, "Received: True."),
        ({**_THRESHOLDS, "Mass": "0.5"}, "Received: '0.5'."),
        ([0.5] * 15, "must hold a dict from finding to threshold. Received: list."),
    ],
)
def test_read_thresholds_anything_else_is_refused(values, message):
    with pytest.raises(InputError) as caught:
        read_thresholds(values, "t.pkl")
    assert message in str(caught.value)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seed")
    keras.utils.set_random_seed(4)
    weights = write_weights(folder / "weights.h5", keras_2_weights(build_network()))
    thresholds, labels = write_seed_pickles(folder)
    return SeedFiles(str(weights), str(thresholds), str(labels))


def test_import_seed_saved_bundle_loads_and_says_what_it_is(files, tmp_path):
    network, info = import_seed(files, "evaluated")
    save_bundle(network, info, str(tmp_path / "bundle"))
    loaded = load_bundle_info(str(tmp_path / "bundle"))
    assert loaded.title == "Imported seed model (evaluated graph)"
    assert "Not for diagnosis. Not measured by this software." in loaded.statement
    assert "dividing grey levels by 255 twice" in loaded.statement
    assert "can tell 9 to 19 of 256 grey levels apart" in loaded.statement
    assert "rescaling_1" not in loaded.statement
    assert tuple(loaded.thresholds) == ("all",)
    assert loaded.thresholds["all"] == info.thresholds["all"]
    assert loaded.thresholds["all"]["Pneumothorax"].threshold == np.float32(0.45)
    assert loaded.metrics["mean_auc"] is None
    assert loaded.metrics["images"] == 0
    provenance = loaded.provenance
    assert provenance["graph"] == "evaluated"
    assert provenance["imported_from"]["weights"]["file"] == "weights.h5"
    assert len(provenance["imported_from"]["labels"]["sha256"]) == 64
    assert "on its own test set" in provenance["thresholds_origin"]
    scaling = load_network(str(tmp_path / "bundle")).get_layer("scaling")
    np.testing.assert_allclose(scaling.scale, provenance["scaling"]["scale"])
    json.dumps(provenance, allow_nan=False)


def test_import_seed_demo_has_thresholds_for_single_views_too(files):
    network, info = import_seed(files, "demo")
    assert tuple(info.thresholds) == ("none", "all")
    assert "the layer rescaling_1, with which the weights were trained, is left out" in (
        info.statement
    )
    expected = seed_scaling(_WEIGHTS, "demo")
    np.testing.assert_allclose(network.get_layer("scaling").offset, expected.offset)


def _reference() -> np.lib.npyio.NpzFile:
    if not (_REFERENCE / "reference.npz").exists():
        pytest.skip("needs build/seed_reference, which scripts/seed_reference.py writes")
    return np.load(_REFERENCE / "reference.npz")


def _import_reference(name: str, graph: str) -> keras.Model:
    pickles = (_REFERENCE / f"{name}.pkl" for name in ("optimal_thresholds", "label_encoder"))
    network, _ = import_seed(SeedFiles(str(_REFERENCE / f"{name}.h5"), *map(str, pickles)), graph)
    return network


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "graph"),
    [("evaluated", "evaluated"), ("whole", "evaluated"), ("nested", "evaluated"), ("demo", "demo")],
)
def test_import_seed_of_keras_2_scores_as_its_own_process_did(name, graph):
    reference = _reference()
    expected = reference[graph]
    scores = Scorer(_import_reference(name, graph)).score(reference["images"]).scores
    difference, spread = np.abs(scores - expected).max(), expected.std(axis=0).mean()
    print(f"\n{name}: largest difference {difference:.1e}, spread over images {spread:.1e}")
    # The network tells the images apart, or agreement would say nothing.
    assert spread > 1e-3
    assert difference <= 1e-5


@pytest.mark.slow
def test_import_seed_of_keras_2_with_the_other_graph_scores_otherwise():
    reference = _reference()
    scores = Scorer(_import_reference("evaluated", "demo")).score(reference["images"]).scores
    assert np.abs(scores - reference["evaluated"]).max() > 0.01


@pytest.mark.slow
def test_import_seed_of_keras_2_end_to_end_differs_by_the_resize(nih_images):
    reference = _reference()
    by_name = {path.name: path for path in nih_images}
    if not set(reference["files"]) <= set(by_name):
        pytest.skip("needs build/seed_reference made of shared/data/nih_images")
    files = [by_name[name] for name in reference["files"]]
    pixels = np.stack([prepare(path.read_bytes()).pixels for path in files])
    scores = Scorer(_import_reference("evaluated", "evaluated")).score(pixels).scores
    expected = reference["evaluated_files"]
    difference, spread = np.abs(scores - expected), expected.std(axis=0).mean()
    print(
        f"\nend to end: mean difference {difference.mean():.1e}, largest {difference.max():.1e},"
        f" spread over images {spread:.1e}"
    )
    # With the same resize they would agree as above.
    assert difference.max() > 1e-5
