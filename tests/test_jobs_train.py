"""`prescreen train` and `prescreen show-model`."""

import csv
import json
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


def test_train_unreadable_config_exits_2(phantoms, tmp_path):
    result = _invoke(
        "train", "--manifest", phantoms / "manifest.csv", "--output", tmp_path / "bundle",
        "--config", tmp_path / "none.toml",
    )  # fmt: skip
    assert result.exit_code == 2
    assert "must be a TOML file" in result.stderr


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


@pytest.mark.slow
def test_train_then_score_gives_the_scores_of_the_trained_network(tmp_path):
    assert _invoke("sample", tmp_path / "s", "--count", 240, "--size", 224).exit_code == 0
    lines = (tmp_path / "s" / "manifest.csv").read_text().splitlines()
    rows = list(csv.DictReader(lines))
    with open(tmp_path / "s" / "split.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "split"])
        writer.writeheader()
        for number, row in enumerate(rows):
            part = "train" if number < 40 else "validation" if number < 200 else "test"
            writer.writerow(row | {"split": part})
    (tmp_path / "c.toml").write_text(
        'title = "Trained in a test"\n[[stages]]\nsize = 224\nepochs = 1\nlearning_rate = 1e-3\n'
    )
    bundle = tmp_path / "bundle"
    result = _invoke(
        "train", "--manifest", tmp_path / "s" / "split.csv", "--output", bundle,
        "--config", tmp_path / "c.toml",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    info = load_bundle_info(str(bundle))
    assert info.title == "Trained in a test"
    assert info.provenance["images"] == {"train": 40, "validation": 160, "test": 40}

    result = _invoke(
        "score", "--manifest", tmp_path / "s" / "manifest.csv", "--output", tmp_path / "out",
        "--model", bundle,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Trained in a test" in result.stdout
    scored = pd.read_parquet(tmp_path / "out" / "scores")[:8]
    pixels = np.stack([prepare(Path(uri).read_bytes()).pixels for uri in scored["uri"]])
    expected = np.asarray(load_network(str(bundle))(pixels))
    columns = [score_column(finding) for finding in FINDINGS]
    np.testing.assert_allclose(scored[columns].to_numpy(), expected, atol=1e-5)
