"""Saving, verifying and refusing bundles."""

import dataclasses
import json
import shutil

import keras
import pytest

from model.bundle import (
    BundleInfo,
    copy_bundle,
    demo_bundle_path,
    load_bundle_info,
    load_network,
    save_bundle,
    thresholds_id,
)
from model.calibration import Calibration, Scaling
from model.thresholds import Threshold
from schemas.contract import STANDARD_CONTRACT
from schemas.errors import InputError
from schemas.findings import ABNORMAL_FINDINGS, FINDINGS


def _small_network(outputs=15, size=224, dtype="uint8"):
    images = keras.Input((size, size), dtype=dtype)
    x = keras.layers.Reshape((size, size, 1))(images)
    x = keras.layers.Rescaling(1 / 255)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(outputs, activation="sigmoid")(x))


def _info():
    thresholds = {name: Threshold(0.5, 0.8, 0.7, 0.9, 0.3, 10) for name in ABNORMAL_FINDINGS}
    return BundleInfo(
        title="A title",
        statement="A statement.",
        findings=FINDINGS,
        input_contract=STANDARD_CONTRACT,
        training_precision="float32",
        thresholds={"none": thresholds},
        borderline_band=0.05,
        metrics={"split": "none", "images": 0},
        provenance={},
        model_sha256="",
    )


def _calibration(slope):
    return Calibration(dict.fromkeys(ABNORMAL_FINDINGS) | {"Mass": Scaling(slope, -0.25)})


@pytest.fixture
def bundle(tmp_path):
    save_bundle(_small_network(), _info(), str(tmp_path / "bundle"))
    return tmp_path / "bundle"


def _edit(bundle, **changes):
    path = bundle / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_save_bundle_then_load_gives_the_same_info_and_network(tmp_path):
    network = _small_network()
    saved = save_bundle(network, _info(), str(tmp_path / "bundle"))
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == [
        "bundle.json",
        "card.md",
        "model.keras",
    ]
    card = (tmp_path / "bundle" / "card.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {saved.title}\n") and saved.model_id in card
    assert load_bundle_info(str(tmp_path / "bundle")) == saved
    assert dataclasses.replace(saved, model_sha256="") == _info()
    loaded = load_network(str(tmp_path / "bundle"))
    for one, other in zip(loaded.get_weights(), network.get_weights(), strict=True):
        assert (one == other).all()


def test_load_bundle_info_changed_network_file_is_refused(bundle):
    data = bytearray((bundle / "model.keras").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "model.keras").write_bytes(data)
    with pytest.raises(InputError, match="must have the digest that bundle.json names"):
        load_bundle_info(str(bundle))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"format_version": 2}, "format_version 1. Received: 2", id="version"),
        pytest.param(
            {"findings": list(FINDINGS[:14])}, "findings must be the 15.*Received 14", id="count"
        ),
        pytest.param(
            {"findings": list(reversed(FINDINGS))}, "in their order", id="order of findings"
        ),
        pytest.param(
            {"input_contract": STANDARD_CONTRACT.to_json() | {"size": 512}},
            "input_contract.size must be 224.*Received: 512",
            id="contract size",
        ),
        pytest.param(
            {"input_contract": STANDARD_CONTRACT.to_json() | {"value_range": [0, 1]}},
            r"input_contract.value_range must be \(0, 255\).*Received: \(0, 1\)",
            id="contract range",
        ),
        pytest.param(
            {"calibration": {"Mass": [1, 0]}},
            "calibration must be null or for exactly the 14 findings",
            id="calibration",
        ),
        pytest.param({"thresholds": {"twice": {}}}, "14 findings|thresholds must be", id="mode"),
        pytest.param({"title": None, "metrics": None}, None, id="nothing that decides a score"),
    ],
)
def test_load_bundle_info_mismatch_is_refused_by_name(bundle, changes, message):
    _edit(bundle, **changes)
    if message is None:
        load_bundle_info(str(bundle))
        return
    with pytest.raises(InputError, match=message):
        load_bundle_info(str(bundle))


@pytest.mark.parametrize("missing", ["bundle.json", "model.keras"])
def test_load_bundle_info_half_a_bundle_is_refused(bundle, missing):
    (bundle / missing).unlink()
    with pytest.raises(InputError, match=f"A bundle must be a folder.*without {missing}"):
        load_bundle_info(str(bundle))


def test_load_bundle_info_lost_field_is_named(bundle):
    values = json.loads((bundle / "bundle.json").read_text())
    del values["thresholds"]
    (bundle / "bundle.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="lacks or garbles the field 'thresholds'"):
        load_bundle_info(str(bundle))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        pytest.param(lambda: _small_network(outputs=14), "must have 15 outputs", id="outputs"),
        pytest.param(lambda: _small_network(size=96), r"must take uint8 \(224, 224\)", id="size"),
        pytest.param(
            lambda: _small_network(dtype="float32"), "must take uint8.*float32", id="dtype"
        ),
    ],
)
def test_load_network_that_does_not_fit_is_refused(tmp_path, network, message):
    save_bundle(network(), _info(), str(tmp_path / "bundle"))
    with pytest.raises(InputError, match=message):
        load_network(str(tmp_path / "bundle"))


def test_model_id_changes_with_what_changes_a_score_and_only_with_that(bundle):
    info = load_bundle_info(str(bundle))
    assert dataclasses.replace(info, title="Other", metrics={}).model_id == info.model_id
    assert dataclasses.replace(info, model_sha256="0" * 64).model_id != info.model_id
    assert dataclasses.replace(info, borderline_band=0.1).model_id != info.model_id
    assert len(info.model_id) == 12


def test_model_id_changes_with_a_calibration_and_stays_without_one():
    info = dataclasses.replace(_info(), model_sha256="ab" * 32)
    # Written down, so that nothing changes the ids of bundles without a word.
    assert info.model_id == "06623e470f6e"
    one = dataclasses.replace(info, calibration=_calibration(slope=0.5))
    other = dataclasses.replace(info, calibration=_calibration(slope=0.75))
    assert len({info.model_id, one.model_id, other.model_id}) == 3


def test_save_bundle_with_a_calibration_then_load_gives_the_same(tmp_path):
    info = dataclasses.replace(_info(), calibration=_calibration(slope=0.1))
    saved = save_bundle(_small_network(), info, str(tmp_path / "bundle"))
    assert load_bundle_info(str(tmp_path / "bundle")) == saved
    assert saved.calibration == info.calibration


def test_copy_bundle_has_the_same_network_and_the_new_facts(bundle, tmp_path):
    info = dataclasses.replace(load_bundle_info(str(bundle)), title="Other")
    copy_bundle(str(bundle), str(tmp_path / "deep" / "copy"), info)
    assert load_bundle_info(str(tmp_path / "deep" / "copy")) == info
    copied = tmp_path / "deep" / "copy"
    assert sorted(path.name for path in copied.iterdir()) == [
        "bundle.json",
        "card.md",
        "model.keras",
    ]
    assert (copied / "card.md").read_text(encoding="utf-8").startswith("# Other\n")
    assert (copied / "model.keras").read_bytes() == (bundle / "model.keras").read_bytes()


def test_copy_bundle_into_a_folder_that_exists_is_refused(bundle, tmp_path):
    info = load_bundle_info(str(bundle))
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="must go to a new folder.*there: File exists"):
        copy_bundle(str(bundle), str(tmp_path / "there"), info)
    assert not list((tmp_path / "there").iterdir())


def test_thresholds_id_changes_with_a_threshold_only():
    thresholds = _info().thresholds["none"]
    other = dict(thresholds) | {"Mass": dataclasses.replace(thresholds["Mass"], positives=11)}
    assert thresholds_id(other) == thresholds_id(thresholds)
    other["Mass"] = dataclasses.replace(thresholds["Mass"], threshold=0.51)
    assert thresholds_id(other) != thresholds_id(thresholds)


def test_demo_bundle_is_whole_and_says_what_it_is(tmp_path):
    info = load_bundle_info(demo_bundle_path())
    assert info.title == "Phantom-trained demonstration"
    assert "Not for diagnosis" in info.statement
    assert set(info.thresholds) == {"none", "borderline", "all"}
    shutil.copytree(demo_bundle_path(), tmp_path / "copy")
    assert load_bundle_info(str(tmp_path / "copy")).model_id == info.model_id


def test_demo_bundle_separates_phantoms():
    assert load_bundle_info(demo_bundle_path()).metrics["mean_auc"] >= 0.93
