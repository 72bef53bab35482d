"""The numbers of an evaluation: by hand, against scikit-learn, and on real predictions."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from model.evaluation import evaluate, label_matrix
from model.evaluation_report import write_report
from model.score_table import LabelledScores, read_labelled_scores
from model.thresholds import Threshold
from schemas.errors import InputError
from schemas.findings import ABNORMAL_FINDINGS, FINDINGS

_NAN = float("nan")


def make_table(images=300, findings=FINDINGS, seed=0):
    """Returns scores that know something of random labels; two images a patient."""
    rng = np.random.default_rng(seed)
    labels = rng.random((images, len(FINDINGS))) < 0.15
    no_finding = FINDINGS.index("No Finding")
    labels[:, no_finding] = ~np.delete(labels, no_finding, axis=1).any(axis=1)
    scores = rng.normal(labels * 1.5 - 1, 1)
    columns = [FINDINGS.index(name) for name in findings]
    return LabelledScores(
        image_ids=np.array([f"i{number:03}" for number in range(images)], object),
        findings=findings,
        scores=(1 / (1 + np.exp(-scores))).astype(np.float32)[:, columns],
        labels=labels[:, columns],
        patients=np.array([f"p{number // 2}" for number in range(images)], object),
        attributes={"sex": np.array(["F", "M", ""] * (images // 3), object)},
    )


def make_thresholds(value=0.5, **changes):
    def threshold(of):
        return Threshold(of, _NAN, _NAN, _NAN, _NAN, 0)

    return {name: threshold(changes.get(name, value)) for name in ABNORMAL_FINDINGS}


def _without(table, finding, label):
    labels = table.labels.copy()
    labels[:, table.findings.index(finding)] = label
    return dataclasses.replace(table, labels=labels)


def test_evaluate_values_are_those_of_scikit_learn():
    table = make_table()
    result = evaluate(table, samples=50)
    areas = {
        name: roc_auc_score(table.labels[:, k], table.scores[:, k])
        for k, name in enumerate(FINDINGS)
    }
    assert list(result["findings"]) == list(FINDINGS)
    for k, (name, values) in enumerate(result["findings"].items()):
        assert values["auc"] == pytest.approx(areas[name], abs=1e-12)
        expected = average_precision_score(table.labels[:, k], table.scores[:, k])
        assert values["average_precision"] == pytest.approx(expected, abs=1e-12)
        assert values["auc_low"] < values["auc"] < values["auc_high"]
        assert values["positives"] == table.labels[:, k].sum()
        assert values["brier"] == pytest.approx(
            ((table.scores[:, k].astype(float) - table.labels[:, k]) ** 2).mean()
        )
    mean = np.mean([areas[name] for name in ABNORMAL_FINDINGS])
    assert result["mean_auc"] == pytest.approx(mean, abs=1e-12)
    assert result["mean_auc_low"] < mean < result["mean_auc_high"]
    assert (result["images"], result["patients"]) == (300, 150)
    assert result["bootstrap"] == {"samples": 50, "seed": 0, "unit": "patient"}
    assert "flag_rate" not in result
    assert "comparison" not in result


def test_evaluate_is_the_same_for_the_same_seed():
    table = make_table()
    first = evaluate(table, samples=20, seed=4)
    assert evaluate(table, samples=20, seed=4) == first
    assert evaluate(table, samples=20, seed=5) != first


def test_evaluate_at_thresholds_counts_flags_of_the_14_only():
    table = make_table()
    result = evaluate(table, samples=20, thresholds=make_thresholds(Mass=1.0))
    columns = [FINDINGS.index(name) for name in ABNORMAL_FINDINGS]
    flagged = (table.scores >= 0.5)[:, columns]
    flagged[:, ABNORMAL_FINDINGS.index("Mass")] = False
    labels = table.labels[:, columns]
    assert result["flag_rate"] == flagged.any(axis=1).mean()
    assert result["flags_per_image"] == flagged.sum() / 300
    k = ABNORMAL_FINDINGS.index("Edema")
    counts = {
        "tp": (flagged & labels)[:, k].sum(),
        "fp": (flagged & ~labels)[:, k].sum(),
        "fn": (~flagged & labels)[:, k].sum(),
        "tn": (~flagged & ~labels)[:, k].sum(),
    }
    edema = result["findings"]["Edema"]
    assert edema["confusion"] == counts
    assert edema["recall"] == counts["tp"] / labels[:, k].sum()
    assert edema["precision"] == counts["tp"] / flagged[:, k].sum()
    assert edema["recall_low"] < edema["recall"] < edema["recall_high"]
    mass = result["findings"]["Mass"]
    assert (mass["recall"], mass["precision"], mass["precision_low"]) == (0.0, None, None)
    assert "threshold" not in result["findings"]["No Finding"]


@pytest.mark.parametrize("label", [False, True])
def test_evaluate_finding_of_one_class_has_no_area_and_there_is_no_mean(label):
    result = evaluate(_without(make_table(), "Hernia", label), samples=20)
    hernia = result["findings"]["Hernia"]
    assert [hernia[key] for key in ("auc", "auc_low", "auc_high")] == [None] * 3
    assert [result[key] for key in ("mean_auc", "mean_auc_low", "mean_auc_high")] == [None] * 3
    assert result["findings"]["Mass"]["auc"] > 0.5
    report = write_report(result, [])
    kind = "negative" if label else "positive"
    assert f"No {kind} image of Hernia: the AUC is undefined.\nSo is the mean" in report
    assert "Mean AUC over the 14 findings: undefined." in report


def test_evaluate_without_no_finding_column_differs_in_that_only():
    full, few = make_table(), make_table(findings=ABNORMAL_FINDINGS)
    with_it, without = evaluate(full, samples=20), evaluate(few, samples=20)
    assert list(without["findings"]) == list(ABNORMAL_FINDINGS)
    assert without["mean_auc"] == with_it["mean_auc"]
    assert without["abnormality"] == with_it["abnormality"]
    np.testing.assert_array_equal(label_matrix(few), full.labels)


def test_evaluate_abnormality_and_errors_are_of_the_probabilities():
    table = make_table()
    probabilities = table.scores**2
    result = evaluate(table, samples=20, probabilities=probabilities)
    plain = evaluate(table, samples=20)
    columns = [FINDINGS.index(name) for name in ABNORMAL_FINDINGS]
    any_of_14 = table.labels[:, columns].any(axis=1)
    combined = 1 - (1 - probabilities[:, columns].astype(float)).prod(axis=1)
    assert result["abnormality"]["auc"] == pytest.approx(roc_auc_score(any_of_14, combined))
    assert result["abnormality"]["positives"] == any_of_14.sum()
    assert result["findings"]["Mass"]["brier"] != plain["findings"]["Mass"]["brier"]
    assert result["findings"]["Mass"]["auc"] == plain["findings"]["Mass"]["auc"]
    assert (result["calibrated"], plain["calibrated"]) == (True, False)


def test_evaluate_subgroups_are_the_images_of_each_value():
    table = make_table()
    groups = evaluate(table, samples=20)["subgroups"]["sex"]
    assert list(groups) == ["F", "M", "unknown"]
    women = table.attributes["sex"] == "F"
    values = groups["F"]["findings"]["Mass"]
    k = FINDINGS.index("Mass")
    expected = roc_auc_score(table.labels[women, k], table.scores[women, k])
    assert values["auc"] == pytest.approx(expected, abs=1e-12)
    assert values["positives"] == table.labels[women, k].sum()
    assert values["auc_low"] < values["auc"] < values["auc_high"]
    assert (groups["F"]["images"], groups["F"]["patients"]) == (100, 100)


def test_evaluate_comparison_is_paired_on_the_common_images():
    table = make_table()
    worse = dataclasses.replace(table, scores=1 - table.scores).select(np.arange(200)[::-1])
    result = evaluate(table, samples=50, baseline=worse)["comparison"]
    assert (result["images"], result["patients"]) == (200, 100)
    assert (result["only_in_scores"], result["only_in_baseline"]) == (100, 0)
    k = FINDINGS.index("Mass")
    area = roc_auc_score(table.labels[:200, k], table.scores[:200, k])
    mass = result["findings"]["Mass"]
    assert mass["auc"] == pytest.approx(area)
    assert mass["baseline_auc"] == pytest.approx(1 - area)
    assert mass["auc_difference"] == pytest.approx(2 * area - 1)
    assert result["mean_auc_difference_low"] > 0


def test_evaluate_comparison_with_itself_is_exactly_nought():
    table = make_table()
    result = evaluate(table, samples=50, baseline=table)["comparison"]
    keys = ("mean_auc_difference", "mean_auc_difference_low", "mean_auc_difference_high")
    assert [result[key] for key in keys] == [0, 0, 0]


def test_evaluate_comparison_without_a_common_image_is_refused():
    table = make_table()
    with pytest.raises(InputError, match="--compare must hold scores of the same images"):
        evaluate(
            table.select(np.arange(100)), samples=5, baseline=table.select(np.arange(100, 300))
        )


def test_evaluate_result_is_plain_json():
    table = _without(make_table(), "Hernia", False)
    result = evaluate(table, samples=10, thresholds=make_thresholds(), baseline=table)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_write_report_tells_all_parts():
    table = make_table()
    result = evaluate(table, samples=10, thresholds=make_thresholds(), baseline=table)
    report = write_report(result, ["auc.png"])
    for heading in ("Findings", "At the thresholds", "Subgroups", "Comparison", "Plots"):
        assert f"\n## {heading}\n" in report
    assert "300 images of 150 patients" in report
    assert f"| Mass | {result['findings']['Mass']['positives']} | " in report
    assert "| Mean of the 14 |  | " in report
    assert "| Sex | unknown | 100 | 100 | " in report
    assert "![auc.png](auc.png)" in report
    assert "not for diagnosis" in report


@pytest.fixture(scope="module")
def chexnet(nih_labels):
    """Predictions of a public model for 22,433 images of the NIH."""
    predictions = nih_labels.parent / "chexnet_predictions.csv.gz"
    published = nih_labels.parent / "chexnet_aucs.csv"
    if not predictions.exists() or not published.exists():
        pytest.skip("needs real data: no chexnet_predictions.csv.gz beside the NIH labels")
    table = read_labelled_scores(str(predictions), str(nih_labels), score_prefix="prob_")
    return table, pd.read_csv(published, index_col="label")["auc"]


def test_evaluate_real_predictions_give_the_published_areas(chexnet):
    table, published = chexnet
    result = evaluate(table, samples=100)
    assert (result["images"], result["patients"]) == (22_433, 6_187)
    for name in ABNORMAL_FINDINGS:
        assert result["findings"][name]["auc"] == pytest.approx(published[name], abs=1e-6)
    assert result["mean_auc"] == pytest.approx(0.8383, abs=5e-5)
    assert result["abnormality"]["auc"] == pytest.approx(0.783, abs=5e-4)


def test_evaluate_real_predictions_vary_more_by_patient_than_by_image(chexnet):
    table, _ = chexnet
    by_image = dataclasses.replace(table, patients=table.image_ids, attributes={})
    by_patient = dataclasses.replace(table, attributes={})
    widths = []
    for each in (by_patient, by_image):
        values = evaluate(each, samples=200)["findings"]["Pneumothorax"]
        widths.append((values["auc_high"] - values["auc_low"]) / 2)
    assert widths == [pytest.approx(0.019, abs=0.004), pytest.approx(0.0105, abs=0.002)]
