"""The model card: every number of the bundle, and none that is not in it."""

import dataclasses
import re

import pytest

from model.bundle import demo_bundle_path, load_bundle_info
from model.calibration import Calibration, Scaling
from model.card import model_card
from model.feature_distance import FeatureReference
from model.thresholds import Threshold
from schemas.findings import ABNORMAL_FINDINGS
from tests.fakes import make_bundle, make_thresholds

FEW = Threshold(0.25, 1.0, 0.6, 1.0, 0.01, 6, "fallback_few_positives", "wilson_patients")


def finding(auc):
    return {
        "positives": 40,
        "auc": auc,
        "auc_low": auc - 0.05,
        "auc_high": auc + 0.05,
        "average_precision": 0.25,
        "brier": 0.0625,
        "calibration_error": 0.03125,
        "recall": 0.75,
        "recall_low": 0.5,
        "recall_high": 0.875,
        "precision": 0.125,
    }


METRICS = {
    "split": "the NIH's official test list",
    "images": 25596,
    "patients": 2797,
    "bootstrap": {"samples": 1000, "seed": 3, "unit": "patient"},
    "mean_auc": 0.8,
    "mean_auc_low": 0.79,
    "mean_auc_high": 0.81,
    "findings": {name: finding(0.7 + index / 100) for index, name in enumerate(ABNORMAL_FINDINGS)},
    "calibrated": True,
    "calibration": {
        name: {"log_loss_scores": 0.25, "log_loss_calibrated": 0.125, "calibrated": True}
        for name in ABNORMAL_FINDINGS
    },
    "abnormality": {"auc": 0.75, "auc_low": 0.74, "auc_high": 0.76},
    "flag_rate": {"none": 0.876},
    "subgroups": {
        "sex": {
            "F": {"images": 10714, "mean_auc": 0.78, "findings": {}},
            "M": {"images": 14882, "mean_auc": None, "findings": {}},
        }
    },
}
CALIBRATION = Calibration(
    {name: None if name == "Hernia" else Scaling(1.0, 0.0) for name in ABNORMAL_FINDINGS}
)
REFERENCE = FeatureReference(
    sha256="ab" * 32,
    quantiles={"0.5": 30.0, "0.9": 36.04, "0.95": 38.0, "0.99": 44.0, "0.999": 60.25},
    measured_on="validation part",
    images=11524,
    fitted_on_images=20000,
    shrinkage=0.0125,
)
FULL = dataclasses.replace(
    make_bundle(),
    title="Chest model",
    statement="For research.",
    thresholds={
        "none": make_thresholds() | {"Hernia": FEW},
        "all": make_thresholds(0.25),
    },
    calibration=CALIBRATION,
    feature_reference=REFERENCE,
    metrics=METRICS,
    provenance={
        "data": "NIH ChestX-ray14",
        "images": {"train": 75000, "validation": 11524, "test": 25596},
        "patients": {"train": 25000, "validation": 3008, "test": 2797},
        "config": {"title": "Chest model", "statement": "For research.", "target_recall": 0.8},
        "software": {"python": "3.11.7", "keras": "3.15.1"},
        "trained_at": "2026-11-22T06:32:04+00:00",
        "history": [{"loss": 0.5}, {"loss": 0.25}],
    },
)
BARE = dataclasses.replace(make_bundle(), metrics={}, provenance={})
SECTIONS = [
    "Intended use", "Excluded use", "Data and split", "Metrics", "Thresholds", "Calibration",
    "Subgroups", "Distance from the training data", "Limits", "Training",
]  # fmt: skip


def section(info, title):
    """Returns the lines of one section that are not empty."""
    _, _, rest = model_card(info).partition(f"\n## {title}\n")
    return [line for line in re.split(r"\n## ", rest)[0].splitlines() if line]


@pytest.mark.parametrize("info", [FULL, BARE], ids=["full", "bare"])
def test_card_begins_with_what_the_model_is_and_has_all_sections(info):
    card = model_card(info)
    assert card.startswith(f"# {info.title}\n\n{info.statement}\n\n- Model id: `{info.model_id}`\n")
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == SECTIONS
    assert card.endswith("\n") and not card.endswith("\n\n")


def test_card_data_says_where_images_are_from_and_how_they_were_divided():
    assert section(FULL, "Data and split") == [
        "- Images: NIH ChestX-ray14",
        "- Parts, in images: train 75000 of 25000 patients, validation 11524 of 3008 patients,"
        " test 25596 of 2797 patients",
        "- Split: the NIH's official test list",
        "- Measured on: 25596 images of 2797 patients",
    ]


def test_card_metrics_have_intervals_and_where_these_are_from():
    lines = section(FULL, "Metrics")
    assert lines[:3] == [
        "Mean AUC over the 14 findings: 0.800 (0.790 to 0.810). AUC of the abnormality score,"
        " any finding against none: 0.750 (0.740 to 0.760). In brackets 95% intervals, from"
        " 1000 bootstrap samples by patient (seed 3).",
        "| finding | positives | AUC | average precision | Brier score | calibration error"
        " | recall at the threshold | precision at the threshold |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    assert lines[3] == (
        "| Atelectasis | 40 | 0.700 (0.650 to 0.750) | 0.250 | 0.062 | 0.031"
        " | 0.750 (0.500 to 0.875) | 0.125 |"
    )
    assert lines[17:] == ["Brier score and calibration error are of calibrated probabilities."]
    assert [line.split(" | ")[0] for line in lines[3:17]] == [
        f"| {name}" for name in ABNORMAL_FINDINGS
    ]


def test_card_metric_of_one_finding_that_is_missing_is_not_measured():
    findings = METRICS["findings"] | {"Hernia": {"positives": 0, "auc": None}}
    info = dataclasses.replace(FULL, metrics=METRICS | {"findings": findings})
    (row,) = [line for line in section(info, "Metrics") if line.startswith("| Hernia")]
    assert row == "| Hernia | 0 |" + " not measured |" * 6


def test_card_thresholds_are_listed_by_mode_with_what_stands_behind_them():
    lines = section(FULL, "Thresholds")
    assert lines[0].endswith("Target recall: 0.8.")
    none, every = lines.index("### `--tta none`"), lines.index("### `--tta all`")
    assert lines[none + 1] == "Share of images flagged: 88%."
    assert lines[every + 1] == "Share of images flagged: not measured."
    assert lines[none + 2] == (
        "| finding | threshold | recall | precision | positives | rule | interval |"
    )
    assert (
        "| Hernia | 0.250 | 1.00 (0.60 to 1.00) | 0.01 | 6 | fallback_few_positives"
        " | wilson_patients |"
    ) in lines[none:every]
    assert (
        "| Hernia | 0.250 | 0.80 (0.70 to 0.90) | 0.50 | 10 | point | wilson_images |"
        in lines[every:]
    )
    assert len([line for line in lines if line.startswith("| Mass |")]) == 2
    legend = "- rule `fallback_few_positives`: too few positives to aim at a recall"
    assert any(line.startswith(legend) for line in lines[none:every])
    assert not any(line.startswith(legend) for line in lines[every:])


def test_card_imported_thresholds_have_nothing_measured_behind_them():
    imported = Threshold(0.25, None, None, None, None, None, "imported", None)
    thresholds = dict.fromkeys(ABNORMAL_FINDINGS, imported)
    info = dataclasses.replace(FULL, thresholds={"all": thresholds}, provenance={})
    lines = section(info, "Thresholds")
    row = "| Mass | 0.250 | not measured | not measured | not measured | imported | not measured |"
    assert row in lines
    assert lines[0].endswith("Target recall: not recorded.")
    assert lines[-1].startswith("- rule `imported`: taken over with the network;")


def test_card_calibration_names_what_was_kept():
    rows = section(FULL, "Calibration")[3:]
    assert len(rows) == 14
    assert "| Mass | calibrated | 0.250 | 0.125 |" in rows
    assert "| Hernia | left as it is | 0.250 | 0.125 |" in rows
    assert not any("not probabilities" in line for line in section(FULL, "Limits"))


def test_card_subgroups_are_a_table():
    assert section(FULL, "Subgroups") == [
        "| attribute | value | images | mean AUC |",
        "| --- | --- | --- | --- |",
        "| sex | F | 10714 | 0.780 |",
        "| sex | M | 14882 | not measured |",
    ]


def test_card_distance_says_what_is_far_and_from_what():
    first, *table = section(FULL, "Distance from the training data")
    assert "fitted on 20000 images of the training part" in first and "0.013 (Ledoit" in first
    assert table == [
        "| of 11524 images, validation part | nearer than |",
        "| --- | --- |",
        "| 50.0% | 30.0 |",
        "| 90.0% | 36.0 |",
        "| 95.0% | 38.0 |",
        "| 99.0% | 44.0 |",
        "| 99.9% | 60.2 |",
    ]
    assert section(BARE, "Distance from the training data") == [
        "Not measured: images unlike the training data are not told."
    ]


def test_card_training_shows_the_configuration_and_software():
    assert section(FULL, "Training") == [
        "- trained_at: 2026-11-22T06:32:04+00:00",
        "- epochs: 2, their metrics in bundle.json",
        "- software: python 3.11.7, keras 3.15.1",
        "- configuration:",
        "```json",
        "{",
        '  "target_recall": 0.8',
        "}",
        "```",
    ]


def test_card_what_the_bundle_lacks_is_said_and_not_made_up():
    assert section(BARE, "Data and split") == [
        "- Images: where they are from is not recorded",
        "- Parts, in images: not recorded",
        "- Split: not recorded",
        "- Measured on: not measured",
    ]
    assert section(BARE, "Metrics") == [
        "Mean AUC over the 14 findings: not measured. AUC of the abnormality score,"
        " any finding against none: not measured.",
        "By finding, not measured: AUC, average precision, Brier score, calibration error,"
        " recall at the threshold, precision at the threshold.",
    ]
    assert section(BARE, "Calibration") == [
        "None: the scores are the network's own, and no probabilities."
    ]
    assert section(BARE, "Subgroups") == ["Not measured."]
    assert section(BARE, "Training") == [
        "- software: not recorded",
        "- configuration: not recorded",
    ]
    assert any("not probabilities" in line for line in section(BARE, "Limits"))


@pytest.mark.parametrize(
    ("provenance", "title", "limit"),
    [
        ({"data": "NIH ChestX-ray14"}, "Chest model", "ChestX-ray14 were mined"),
        ({"config": {"split": {"kind": "official"}}}, "Chest model", "ChestX-ray14 were mined"),
        ({"data": "synthetic phantoms"}, "Chest model", "All numbers here are about phantoms"),
        ({}, "Phantom model", "All numbers here are about phantoms"),
        ({"data": "ward images"}, "Ward model", None),
    ],
    ids=["nih", "official split", "phantoms", "phantoms by title", "other"],
)
def test_card_limits_are_those_of_the_data(provenance, title, limit):
    info = dataclasses.replace(FULL, provenance=provenance, title=title)
    found = [
        line
        for line in section(info, "Limits")
        if "ChestX-ray14 were mined" in line or "about phantoms" in line
    ]
    assert len(found) == (limit is not None) and all(limit in line for line in found)
    on_phantoms = limit is not None and "phantoms" in limit
    (intended,) = section(info, "Intended use")
    assert intended.startswith("Trying the software" if on_phantoms else "Research on")


def test_card_of_the_demonstration_says_that_it_is_about_phantoms():
    info = load_bundle_info(demo_bundle_path())
    assert section(info, "Intended use")[0].startswith("Trying the software, and nothing else.")
    assert section(info, "Limits")[0].startswith("- All numbers here are about phantoms.")
    assert f"Mean AUC over the 14 findings: {info.metrics['mean_auc']:.3f}" in model_card(info)
