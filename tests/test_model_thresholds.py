"""Choosing, applying, storing and refusing thresholds."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.thresholds import (
    Threshold,
    abnormality,
    flagged_findings,
    load_thresholds,
    threshold_vector,
    thresholds_from_json,
    thresholds_to_json,
    tune_thresholds,
    wilson_interval,
)
from schemas.errors import InputError
from schemas.findings import ABNORMAL_FINDINGS, ABNORMAL_INDICES, FINDINGS


def _thresholds(**changes):
    base = {name: Threshold(0.5, 0.8, 0.7, 0.9, 0.3, 10) for name in ABNORMAL_FINDINGS}
    return base | changes


@st.composite
def _scored_and_labelled(draw):
    count = draw(st.integers(2, 40))
    levels = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])
    scores = draw(st.lists(levels, min_size=count, max_size=count))
    labels = draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(any))
    return np.array(scores, np.float32), np.array(labels)


@given(_scored_and_labelled(), st.sampled_from([0.1, 0.5, 0.8, 0.95, 1.0]))
@settings(deadline=None, max_examples=200)
def test_tune_thresholds_is_the_highest_score_that_reaches_the_recall(example, target):
    scores, positive = example
    tuned = tune_thresholds(
        np.repeat(scores[:, np.newaxis], 15, axis=1),
        np.repeat(positive[:, np.newaxis], 15, axis=1),
        target,
    )["Mass"]
    recall_at = {
        float(value): (scores[positive] >= value).mean() for value in np.unique(scores[positive])
    }
    assert tuned.threshold == max(v for v, recall in recall_at.items() if recall >= target - 1e-9)
    assert tuned.recall == recall_at[tuned.threshold]
    assert tuned.precision == positive[scores >= np.float32(tuned.threshold)].mean()
    assert tuned.positives == positive.sum()
    assert tuned.recall_low <= tuned.recall <= tuned.recall_high


def test_tune_thresholds_four_of_five_positives_reach_eighty_percent():
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.1, 0.65], np.float32)
    labels = np.array([True] * 5 + [False])
    tuned = tune_thresholds(
        np.repeat(scores[:, np.newaxis], 15, axis=1),
        np.repeat(labels[:, np.newaxis], 15, axis=1),
    )["Hernia"]
    assert tuned.threshold == np.float32(0.6)
    assert (tuned.recall, tuned.precision) == (0.8, 0.8)


def test_tune_thresholds_without_a_positive_is_refused_by_name():
    labels = np.ones((3, 15), bool)
    labels[:, FINDINGS.index("Hernia")] = False
    with pytest.raises(InputError, match="at least one positive image a finding.*Hernia"):
        tune_thresholds(np.zeros((3, 15), np.float32), labels)


def test_wilson_interval_known_values():
    # Newcombe 1998, Table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for (hits, trials), expected in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert wilson_interval(hits, trials) == pytest.approx(expected, abs=5e-5)


def test_flagged_findings_at_the_float32_threshold_descending_ties_in_order():
    vector = threshold_vector(
        _thresholds(Mass=dataclasses.replace(_thresholds()["Mass"], threshold=0.1))
    )
    scores = np.zeros(15, np.float32)
    scores[FINDINGS.index("Mass")] = np.float32(0.1)
    scores[FINDINGS.index("Edema")] = scores[FINDINGS.index("Atelectasis")] = 0.5
    scores[FINDINGS.index("Effusion")] = np.nextafter(np.float32(0.5), np.float32(0))
    scores[FINDINGS.index("No Finding")] = 1.0
    names = [FINDINGS[k] for k in flagged_findings(scores, vector)]
    assert names == ["Atelectasis", "Edema", "Mass"]


@given(st.lists(st.floats(0, 1, width=32), min_size=15, max_size=15))
def test_abnormality_is_the_chance_of_at_least_one_finding(values):
    probabilities = np.array(values, np.float32)
    absent = 1.0
    for index in ABNORMAL_INDICES:
        absent *= 1 - float(probabilities[index])
    assert float(abnormality(probabilities)) == pytest.approx(1 - absent, abs=1e-6)


def test_thresholds_json_round_trip_is_exact():
    thresholds = _thresholds(Edema=Threshold(float(np.float32(0.1)), 1.0, 0.9, 1.0, 0.2, 3))
    values = json.loads(json.dumps(thresholds_to_json(thresholds)))
    assert thresholds_from_json(values, "file") == thresholds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda f: f.pop("Mass"), "exactly the 14 findings.*Mass", id="missing"),
        pytest.param(lambda f: f.update(Gout={}), "exactly the 14 findings.*Gout", id="unknown"),
        pytest.param(lambda f: f["Mass"].pop("recall"), "Mass must have the keys", id="no recall"),
        pytest.param(lambda f: f["Mass"].update(threshold="0.5"), "must be a number", id="text"),
        pytest.param(
            lambda f: f["Mass"].update(threshold=1.5), "from 0 to 1.*1.5", id="out of range"
        ),
        pytest.param(
            lambda f: f["Mass"].update(threshold=float("nan")), "from 0 to 1.*nan", id="nan"
        ),
    ],
)
def test_load_thresholds_broken_file_is_refused(tmp_path, change, message):
    findings = thresholds_to_json(_thresholds())
    change(findings)
    path = tmp_path / "thresholds.json"
    path.write_text(json.dumps({"tta": "none", "findings": findings}))
    with pytest.raises(InputError, match=message):
        load_thresholds(str(path), "none")


def test_load_thresholds_of_another_mode_is_refused(tmp_path):
    path = tmp_path / "thresholds.json"
    path.write_text(json.dumps({"tta": "all", "findings": thresholds_to_json(_thresholds())}))
    assert load_thresholds(str(path), "all") == _thresholds()
    with pytest.raises(InputError, match="for --tta all, this run uses --tta none"):
        load_thresholds(str(path), "none")


@pytest.mark.parametrize("content", [None, b"", b"[1]", b"{", b"\xff"])
def test_load_thresholds_no_json_object_is_refused(tmp_path, content):
    path = tmp_path / "thresholds.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"must (be a readable JSON file|have the keys)"):
        load_thresholds(str(path), "none")
