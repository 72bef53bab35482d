"""`prescreen train` and `prescreen show-model`."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from jobs.cli import cli
from model.bundle import load_bundle_info, load_network
from model.preprocessing import prepare
from schemas.findings import FINDINGS, score_column


def _invoke(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_train_manifest_without_labels_exits_2(phantoms, tmp_path):
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"image_id,uri,patient_id\na,{phantoms}/images/x.png,p\n")
    result = _invoke("train", "--manifest", manifest, "--output", tmp_path / "bundle")
    assert result.exit_code == 2
    assert "manifest must give labels for every image. Received: 1 without" in result.stderr
    assert not (tmp_path / "bundle").exists()


def test_train_output_that_exists_exits_2(phantoms, tmp_path):
    result = _invoke("train", "--manifest", phantoms / "manifest.csv", "--output", tmp_path)
    assert result.exit_code == 2
    assert "--output must be a new folder" in result.stderr


def test_prepare_says_what_it_prepared(phantoms, tmp_path):
    arguments = ("--manifest", phantoms / "manifest.csv", "--output", tmp_path / "cache")
    result = _invoke("prepare", *arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"12 images prepared in {tmp_path / 'cache'}, 0 rejected.\n"


def test_train_unreadable_config_exits_2(phantoms, tmp_path):
    result = _invoke(
        "train", "--manifest", phantoms / "manifest.csv", "--output", tmp_path / "bundle",
        "--config", tmp_path / "none.toml",
    )  # fmt: skip
    assert result.exit_code == 2
    assert "must be a readable TOML file" in result.stderr


def test_show_model_without_a_bundle_shows_the_demonstration():
    result = _invoke("show-model")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Phantom-trained demonstration\n")
    assert "Not for diagnosis" in result.stdout
    for finding in FINDINGS:
        assert (finding in result.stdout) == (finding != "No Finding")


def test_show_model_json_is_the_bundle_file(tmp_path):
    result = _invoke("show-model", "--json")
    values = json.loads(result.stdout)
    assert values["findings"] == list(FINDINGS)
    assert set(values["thresholds"]) == {"none", "borderline", "all"}


def test_show_model_no_bundle_exits_2(tmp_path):
    result = _invoke("show-model", tmp_path / "none")
    assert result.exit_code == 2
    assert "A bundle must be a folder" in result.stderr


@pytest.fixture(scope="module")
def labelled_sample(tmp_path_factory):
    """A manifest of 240 small phantoms divided into 40, 160 and 40."""
    folder = tmp_path_factory.mktemp("labelled") / "s"
    assert _invoke("sample", folder, "--count", 240, "--size", 224).exit_code == 0
    rows = list(csv.DictReader((folder / "manifest.csv").read_text().splitlines()))
    with open(folder / "split.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "split"])
        writer.writeheader()
        for number, row in enumerate(rows):
            part = "train" if number < 40 else "validation" if number < 200 else "test"
            writer.writerow(row | {"split": part})
    return folder / "split.csv"


_CONFIG = """
title = "Trained in a test"
batch_size = 8
[split]
kind = "column"
[balance]
minimum_positives = 0
[[stages]]
size = 64
epochs = 2
learning_rate = 1e-3
[[stages]]
size = 224
epochs = 1
learning_rate = 1e-3
"""


@pytest.mark.slow
def test_train_then_score_gives_the_scores_of_the_trained_network(labelled_sample, tmp_path):
    (tmp_path / "c.toml").write_text(_CONFIG)
    bundle = tmp_path / "bundle"
    result = _invoke(
        "train", "--manifest", labelled_sample, "--output", bundle,
        "--config", tmp_path / "c.toml",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    info = load_bundle_info(str(bundle))
    assert info.title == "Trained in a test"
    assert info.provenance["images"] == {"train": 40, "validation": 160, "test": 40}
    assert "Trained in a test" in (bundle / "card.md").read_text()

    result = _invoke(
        "score", "--manifest", labelled_sample, "--output", tmp_path / "out", "--model", bundle
    )
    assert result.exit_code == 0, result.output
    assert "Trained in a test" in result.stdout
    scored = pd.read_parquet(tmp_path / "out" / "scores")[:8]
    pixels = np.stack([prepare(Path(uri).read_bytes()).pixels for uri in scored["uri"]])
    expected = np.asarray(load_network(str(bundle))(pixels))
    columns = [score_column(finding) for finding in FINDINGS]
    np.testing.assert_allclose(scored[columns].to_numpy(), expected, atol=1e-5)


def _start_training(manifest, folder, *more):
    (folder / "c.toml").write_text(_CONFIG)
    command = [
        sys.executable, "-m", "jobs", "train", "--manifest", manifest,
        "--output", folder / "bundle", "--config", folder / "c.toml", *more,
    ]  # fmt: skip
    return subprocess.Popen(list(map(str, command)), cwd=Path(__file__).parents[1])


@pytest.mark.slow
def test_train_killed_within_an_epoch_and_resumed_measures_the_same(labelled_sample, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert _start_training(labelled_sample, whole).wait() == 0
    process = _start_training(labelled_sample, killed)
    log = killed / "bundle.state" / "training.csv"
    # The second epoch of the first stage takes some seconds; the kill falls in it.
    while not log.exists():
        time.sleep(0.05)
        assert process.poll() is None
    time.sleep(1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(log.read_text().splitlines()) == 2
    assert _start_training(labelled_sample, killed, "--resume").wait() == 0
    metrics, resumed = (load_bundle_info(str(f / "bundle")).metrics for f in (whole, killed))
    for finding, values in metrics["findings"].items():
        for name in ("auc", "average_precision", "brier"):
            assert resumed["findings"][finding][name] == pytest.approx(values[name], abs=1e-6)
    one, other = (load_network(str(f / "bundle")) for f in (whole, killed))
    for weights, same in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(weights, same, atol=1e-6)
