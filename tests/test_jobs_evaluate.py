"""`prescreen evaluate`."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from jobs.evaluate import evaluate_command
from schemas.findings import ABNORMAL_FINDINGS, FINDINGS, score_column
from tests.test_model_evaluation import make_table
from tests.test_model_score_table import write_run


def _invoke(*arguments):
    return CliRunner().invoke(evaluate_command, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with scores.csv and labels.csv of `make_table`."""
    folder = tmp_path_factory.mktemp("evaluate")
    table = make_table(images=60)
    scores = pd.DataFrame(table.scores, columns=[score_column(name) for name in FINDINGS])
    scores.insert(0, "image_id", table.image_ids)
    scores.to_csv(folder / "scores.csv", index=False)
    labels = pd.DataFrame(
        {
            "image_id": table.image_ids,
            "patient_id": table.patients,
            "view_position": ["PA", "AP"] * 30,
            "labels": ["|".join(np.array(FINDINGS)[row]) for row in table.labels],
        }
    )
    labels.to_csv(folder / "labels.csv", index=False)
    return folder


def test_evaluate_writes_metrics_report_and_plots(files, tmp_path):
    output = tmp_path / "new" / "out"
    thresholds = tmp_path / "t.json"
    findings = {
        name: {"threshold": 0.25, "recall": 0.8, "recall_low": 0.7, "recall_high": 0.9,
               "precision": 0.1, "positives": 9}
        for name in ABNORMAL_FINDINGS
    }  # fmt: skip
    thresholds.write_text(json.dumps({"tta": "all", "findings": findings}))
    result = _invoke(
        "--scores", files / "scores.csv", "--labels", files / "labels.csv", "--output", output,
        "--bootstrap", 10, "--seed", 3, "--thresholds", thresholds,
        "--compare", files / "scores.csv",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["bootstrap"] == {"samples": 10, "seed": 3, "unit": "patient"}
    assert metrics["findings"]["Mass"]["threshold"] == 0.25
    assert metrics["comparison"]["mean_auc_difference"] == 0
    assert metrics["source"]["split"] == "all"
    assert set(metrics["subgroups"]) == {"view_position"}
    written = sorted(path.name for path in output.iterdir())
    assert [name for name in written if not name.endswith(".png")] == ["metrics.json", "metrics.md"]
    assert len(written) == 11
    report = (output / "metrics.md").read_text()
    assert all(f"![{name}]({name})" in report for name in written if name.endswith(".png"))
    mean = f"{metrics['mean_auc']:.3f} ({metrics['mean_auc_low']:.3f} to"
    assert f"Mean AUC over the 14 findings  {mean}" in result.stdout
    assert "Flagged: " in result.stdout
    assert "Mean AUC above that of --compare: 0.0000 (0.0000 to 0.0000)." in result.stdout
    assert result.stderr == "Measuring 60 images with 10 bootstrap samples of patients.\n"


def test_evaluate_run_uses_its_thresholds_and_keeps_other_files(tmp_path):
    thresholds = dict.fromkeys(ABNORMAL_FINDINGS, 0.02)
    record = write_run(tmp_path, "r1", ["a", "b", "c"], thresholds)
    labels = tmp_path / "labels.csv"
    labels.write_text("image_id,patient_id,labels\na,1,Mass\nb,2,Edema\nc,3,No Finding\nd,4,Mass\n")
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    (output / "metrics.json").write_text("old")
    result = _invoke(
        "--scores", record, "--labels", labels, "--output", output, "--bootstrap", 5
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["findings"]["Mass"]["threshold"] == pytest.approx(0.02)
    assert (metrics["images"], metrics["unscored"]) == (3, 1)
    assert metrics["mean_auc"] is None
    assert "Mean AUC over the 14 findings  undefined" in result.stdout
    assert (output / "notes.txt").read_text() == "mine"


def test_evaluate_without_labels_takes_those_that_the_scores_carry(files, tmp_path, monkeypatch):
    monkeypatch.setattr("model.plots.write_plots", lambda *_, **options: [])
    scores = pd.read_csv(files / "scores.csv").merge(pd.read_csv(files / "labels.csv"))
    scores.loc[:9, "labels"] = ""
    scores.to_csv(tmp_path / "carried.csv", index=False)
    given = ["--scores", tmp_path / "carried.csv", "--bootstrap", 5, "--output"]
    result = _invoke(*given, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "0 labelled images without a score, 10 scored images without a label." in result.stdout
    own = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (own["images"], own["unlabelled"]) == (50, 10)
    result = _invoke(*given, tmp_path / "all", "--labels", files / "labels.csv")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "all/metrics.json").read_text())["images"] == 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "official"], "--split official needs --test-list FILE"),
        (["--score-prefix", "prob_"], "none for Atelectasis"),
        (["--thresholds", "{folder}/labels.csv"], "--thresholds must be a JSON file"),
        (["--compare", "{folder}/none.csv"], "can be read.*No such file"),
        (["--output", "{folder}/labels.csv"], "--output must be a folder that can be written"),
        (["--bootstrap", "0"], "0 is not in the range x>=1"),
    ],
)
def test_evaluate_bad_option_exits_2_and_writes_nothing(files, tmp_path, options, message):
    given = [option.format(folder=files) for option in options]
    result = _invoke(
        "--scores", files / "scores.csv", "--labels", files / "labels.csv",
        "--output", tmp_path / "out", *given,
    )  # fmt: skip
    assert result.exit_code == 2
    assert re.search(message, result.stderr)
    assert not (tmp_path / "out").exists()
