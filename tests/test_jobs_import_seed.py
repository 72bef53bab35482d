"""`prescreen import-seed`."""

import operator
import os

import h5py
import keras
import pytest
from click.testing import CliRunner

from jobs.import_seed import import_seed_command
from model.bundle import load_bundle_info
from model.network import build_network
from schemas.findings import FINDINGS
from tests.seed_files import keras_2_weights, write_pickle, write_seed_pickles, write_weights


@pytest.fixture(scope="module")
def seed(tmp_path_factory):
    """A folder of the seed's three files."""
    folder = tmp_path_factory.mktemp("seed")
    keras.utils.set_random_seed(4)
    write_weights(folder / "best_model_final.h5", keras_2_weights(build_network()))
    write_seed_pickles(folder)
    return folder


def _import(seed, output, graph="evaluated", **replaced):
    files = {
        "weights": seed / "best_model_final.h5",
        "thresholds": seed / "optimal_thresholds.pkl",
        "labels": seed / "label_encoder.pkl",
    } | replaced
    options = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    return CliRunner().invoke(
        import_seed_command, [*options, "--graph", graph, "--output", str(output)]
    )


class _Call:
    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


def test_import_seed_evaluated_writes_a_bundle_and_says_what_to_know(seed, tmp_path):
    result = _import(seed, tmp_path / "bundle")
    assert result.exit_code == 0, result.output
    info = load_bundle_info(str(tmp_path / "bundle"))
    lines = result.stdout.splitlines()
    assert lines == [
        f"Bundle {info.model_id} in {tmp_path}/bundle: Imported seed model (evaluated graph).",
        info.statement,
        "Thresholds: those of the pickle, for --tta all; No Finding's is left out."
        " Tune others with prescreen tune.",
        "Of 256 grey levels the network can tell apart, in red, green and blue: float32 256,"
        " 256, 256; mixed_float16 9, 10, 19; mixed_bfloat16 3, 2, 3. The seed was trained in"
        " mixed_float16, which is --precision auto on a GPU.",
        f"Next: prescreen score --manifest FILE --output DIR --model {tmp_path}/bundle --tta all",
    ]


def test_import_seed_demo_of_weights_trained_with_rescaling_1_says_so(seed, tmp_path):
    result = _import(seed, tmp_path / "bundle", graph="demo")
    assert result.exit_code == 0, result.output
    assert (
        "The weights were written by a graph with rescaling_1, and the graph demo is without it:"
        " its scores are others than those of the graph that wrote them.\n"
    ) in result.stdout
    assert result.stdout.endswith("--tta none\n")


@pytest.mark.parametrize("option", ["thresholds", "labels"])
@pytest.mark.parametrize("kind", ["system", "eval", "attrgetter"])
def test_import_seed_hostile_pickle_exits_2_and_does_nothing(seed, tmp_path, option, kind):
    canary = tmp_path / "canary"
    calls = {
        "system": _Call(os.system, f"touch {canary}"),
        "eval": _Call(eval, f"open({str(canary)!r}, 'w')"),
        "attrgetter": _Call(operator.attrgetter, "__class__"),
    }
    hostile = write_pickle(tmp_path / "hostile.pkl", {"Edema": calls[kind]})
    result = _import(seed, tmp_path / "bundle", **{option: hostile})
    assert result.exit_code == 2
    assert f"{kind}'. Nothing of it was executed." in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == [hostile]


@pytest.mark.parametrize("option", ["weights", "thresholds", "labels"])
def test_import_seed_file_of_another_kind_exits_2_and_writes_nothing(seed, tmp_path, option):
    other = tmp_path / "other"
    other.write_bytes(b"neither HDF5 nor pickle")
    result = _import(seed, tmp_path / "bundle", **{option: other})
    assert result.exit_code == 2
    assert f"{other} must be a" in result.stderr
    assert sorted(tmp_path.iterdir()) == [other]


def test_import_seed_weights_of_another_shape_exits_2_and_writes_nothing(seed, tmp_path):
    weights = tmp_path / "w.h5"
    weights.write_bytes((seed / "best_model_final.h5").read_bytes())
    with h5py.File(weights, "r+") as file:
        del file["dense_2/dense_2/kernel:0"]
        file["dense_2/dense_2/kernel:0"] = [[0.5] * 14] * 256
    result = _import(seed, tmp_path / "bundle", weights=weights)
    assert result.exit_code == 2
    assert "not wanted dense_2/kernel (256, 14)" in result.stderr
    assert sorted(tmp_path.iterdir()) == [weights]


def test_import_seed_findings_in_another_order_exits_2(seed, tmp_path):
    labels = {name: index for index, name in enumerate(reversed(FINDINGS))}
    path = write_pickle(tmp_path / "labels.pkl", labels)
    result = _import(seed, tmp_path / "bundle", labels=path)
    assert result.exit_code == 2
    assert "must give index 0 to 'Atelectasis'" in result.stderr
    assert "Received: 'Pneumothorax'" in result.stderr


def test_import_seed_folder_that_exists_exits_2_and_keeps_it(seed, tmp_path):
    (tmp_path / "bundle").mkdir()
    result = _import(seed, tmp_path / "bundle")
    assert result.exit_code == 2
    assert "--output must be a folder that does not exist yet" in result.stderr
    assert list((tmp_path / "bundle").iterdir()) == []


def test_import_seed_folder_below_a_file_exits_2(seed, tmp_path):
    (tmp_path / "file").write_text("")
    result = _import(seed, tmp_path / "file" / "bundle")
    assert result.exit_code == 2
    assert "--output must be in a folder that can be written" in result.stderr
