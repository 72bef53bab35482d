"""The command `tune`: what it writes, what it says, and what it refuses."""

import csv
import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

from jobs.tune import tune_command
from model.bundle import demo_bundle_path, load_bundle_info, thresholds_id
from model.thresholds import load_thresholds
from model.tuning import tune_thresholds
from schemas.findings import ABNORMAL_FINDINGS, FINDINGS, score_column

PATIENTS, EACH = 60, 3


@pytest.fixture(scope="module")
def data():
    """float32 scores and bool labels of 180 images; Hernia has 4 patients with it."""
    rng = np.random.default_rng(0)
    labels = rng.random((PATIENTS * EACH, 15)) < 0.5
    labels[:, FINDINGS.index("Hernia")] = np.arange(len(labels)) < 4 * EACH
    labels[:, FINDINGS.index("No Finding")] = False
    scores = np.clip(0.3 * labels + 0.7 * rng.random(labels.shape), 0, 1).astype(np.float32)
    return scores, labels


@pytest.fixture
def files(data, tmp_path):
    """Paths of scores and labels as CSV files."""
    scores, labels = data
    with open(tmp_path / "scores.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image_id", *map(score_column, FINDINGS)])
        rows.writerows([f"i{k}", *map(repr, row.tolist())] for k, row in enumerate(scores))
    with open(tmp_path / "labels.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image_id", "uri", "patient_id", "labels"])
        for k, row in enumerate(labels):
            names = "|".join(np.array(FINDINGS)[row]) or "No Finding"
            rows.writerow([f"i{k}", f"i{k}.png", f"p{k // EACH}", names])
    return tmp_path / "scores.csv", tmp_path / "labels.csv"


def _tune(files, *options):
    scores, labels = files
    output = scores.with_name("thresholds.json")
    arguments = ["--scores", scores, "--labels", labels, "--output", output, *options]
    return CliRunner().invoke(tune_command, list(map(str, arguments))), output


def _expected(data, **options):
    scores, labels = data
    patients = np.array([f"p{k // EACH}" for k in range(len(labels))])
    return tune_thresholds(scores, labels, patients=patients, **options)


@pytest.mark.parametrize("policy", ["point", "conservative"])
def test_tune_writes_the_thresholds_that_the_model_package_chooses(data, files, policy):
    options = ["--policy", policy, "--target-recall", 0.7, "--tta", "all"]
    result, output = _tune(files, *options, "--bootstrap", 200, "--seed", 5)
    assert result.exit_code == 0, result.output
    expected = _expected(data, target_recall=0.7, policy=policy, samples=200, seed=5)
    assert load_thresholds(str(output), "all") == expected
    values = json.loads(output.read_text())
    findings = values.pop("findings")
    assert list(findings) == list(ABNORMAL_FINDINGS)
    assert list(findings["Mass"]) == [
        "threshold",
        "recall",
        "recall_low",
        "recall_high",
        "precision",
        "positives",
        "rule",
        "interval",
    ]
    scores, _ = data
    over = [scores[:, FINDINGS.index(name)] >= expected[name].threshold for name in expected]
    assert values == {
        "tta": "all",
        "target_recall": 0.7,
        "policy": policy,
        "images": 180,
        "patients": 60,
        "bootstrap": 200,
        "seed": 5,
        "flag_rate": np.any(over, axis=0).mean(),
    }


def test_tune_says_what_it_chose_and_what_fell_back(files):
    result, output = _tune(files)
    lines = result.stdout.splitlines()
    assert lines[0] == ("Tuned on 180 images of 60 patients: recall 0.8, policy point, --tta none.")
    values = json.loads(output.read_text())
    mass, hernia = values["findings"]["Mass"], values["findings"]["Hernia"]
    heads = r"finding +threshold +recall +95% interval +precision +positives"
    assert re.fullmatch(heads, lines[2])
    [said] = [line for line in lines if line.startswith("Mass")]
    assert said.split() == [
        "Mass",
        f"{mass['threshold']:.5f}",
        f"{mass['recall']:.3f}",
        f"{mass['recall_low']:.3f}",
        "to",
        f"{mass['recall_high']:.3f}",
        f"{mass['precision']:.3f}",
        str(mass["positives"]),
    ]
    [said] = [line for line in lines if line.startswith("Hernia")]
    assert said.endswith(" 12 *") and " 1.000 " in said
    assert hernia["rule"] == "fallback_few_positives"
    assert lines[-3:] == [
        "* Hernia: fewer than 10 patients have it, too few to aim with; flags all positive images"
        " known.",
        f"Flagged: {values['flag_rate']:.1%} of these images.",
        f"Thresholds: {output}",
    ]


def test_tune_scores_without_no_finding_and_with_a_prefix_give_the_same(data, files):
    scores, _ = files
    rows = list(csv.reader(scores.read_text().splitlines()))
    left_out = rows[0].index("score_No_Finding")
    rows[0] = [name.replace("score_", "prob_") for name in rows[0]]
    with open(scores, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(row[:left_out] + row[left_out + 1 :] for row in rows)
    result, output = _tune(files, "--score-prefix", "prob_")
    assert result.exit_code == 0, result.output
    assert load_thresholds(str(output), "none") == _expected(data)


def test_tune_into_stores_them_in_a_copy_of_the_bundle(data, files, tmp_path):
    source, new = demo_bundle_path(), tmp_path / "new"
    result, output = _tune(files, "--bundle", source, "--into", new)
    assert result.exit_code == 0, result.output
    before, after = load_bundle_info(source), load_bundle_info(str(new))
    assert after.thresholds["none"] == _expected(data)
    assert after.thresholds["all"] == before.thresholds["all"]
    assert set(after.thresholds) == {"none", "all"}
    assert (after.model_id, after.model_sha256) == (before.model_id, before.model_sha256)
    assert thresholds_id(after.thresholds["none"]) != thresholds_id(before.thresholds["none"])
    values = json.loads(output.read_text())
    assert after.metrics["flag_rate"]["none"] == values["flag_rate"]
    assert after.metrics["mean_auc"] == before.metrics["mean_auc"]
    assert after.provenance["thresholds"]["none"] == {
        key: value for key, value in values.items() if key not in ("tta", "findings")
    }
    assert result.stdout.splitlines()[-2:] == [
        f"Bundle:     {new}",
        "The copy has no thresholds for --tta borderline: other images are borderline now."
        " Tune that mode again.",
    ]


def test_tune_into_another_mode_keeps_the_rest(files, tmp_path):
    new = tmp_path / "new"
    result, _ = _tune(files, "--tta", "all", "--bundle", demo_bundle_path(), "--into", new)
    before, after = load_bundle_info(demo_bundle_path()), load_bundle_info(str(new))
    assert set(after.thresholds) == {"none", "borderline", "all"}
    assert after.thresholds["none"] == before.thresholds["none"]
    assert result.stdout.splitlines()[-1] == f"Bundle:     {new}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bundle", "B"], "--bundle and --into must be given together. Received: --bundle alone"),
        (["--into", "B"], "--bundle and --into must be given together. Received: --into alone"),
        (["--bundle", "B", "--into", "{there}"], "--into must be a folder that does not exist"),
        (["--bundle", "B", "--into", "{new}"], "A bundle must be a folder with bundle.json"),
        (["--output", "{there}"], "--output must be a file in a folder that exists"),
        (["--output", "{new}/t.json"], "--output must be a file in a folder that exists"),
        (["--scores", "{new}.csv"], "must be a table that can be read"),
        (["--score-prefix", "prob_"], "must have a column of scores for each of the 14 findings"),
        (["--target-recall", "1", "--policy", "conservative"], "target_recall must be under 1"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else " ".join(value)[:30],
)
def test_tune_bad_input_is_refused_and_nothing_written(files, tmp_path, options, message):
    names = {"there": tmp_path / "there", "new": tmp_path / "new"}
    names["there"].mkdir()
    result, output = _tune(files, *(option.format(**names) for option in options))
    assert result.exit_code == 2
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not output.exists() and not names["new"].exists()
    assert not list(names["there"].iterdir())


def test_tune_scores_that_lack_a_finding_are_refused_by_its_name(files):
    text = files[0].read_text()
    files[0].write_text(text.replace("score_Hernia", "score_Hernias"))
    result, output = _tune(files)
    assert result.exit_code == 2 and not output.exists()
    assert "Received: none for Hernia." in result.stderr


def test_tune_finding_without_a_positive_image_is_refused_by_its_name(files):
    files[1].write_text(files[1].read_text().replace("Hernia|", "").replace("|Hernia", ""))
    result, output = _tune(files)
    assert result.exit_code == 2 and not output.exists()
    assert "at least one positive image a finding. Received none of: Hernia." in result.stderr


def test_tune_help_warns_of_tuning_where_one_reports():
    text = " ".join(CliRunner().invoke(tune_command, ["--help"]).output.split())
    assert "never on those you report on" in text
