"""Applying, storing and refusing thresholds."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.thresholds import (
    Threshold,
    abnormality,
    flagged_findings,
    load_thresholds,
    threshold_vector,
    thresholds_from_json,
    thresholds_to_json,
)
from schemas.errors import InputError
from schemas.findings import ABNORMAL_FINDINGS, ABNORMAL_INDICES, FINDINGS


def _thresholds(**changes):
    base = {name: Threshold(0.5, 0.8, 0.7, 0.9, 0.3, 10) for name in ABNORMAL_FINDINGS}
    return base | changes


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
# A busy machine draws slowly.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_abnormality_is_the_chance_of_at_least_one_finding(values):
    probabilities = np.array(values, np.float32)
    absent = 1.0
    for index in ABNORMAL_INDICES:
        absent *= 1 - float(probabilities[index])
    assert float(abnormality(probabilities)) == pytest.approx(1 - absent, abs=1e-6)


def test_thresholds_json_round_trip_is_exact():
    low = Threshold(
        float(np.float32(0.1)), 1.0, 0.9, 1.0, 0.2, 3, "fallback_few_positives", "wilson_patients"
    )
    thresholds = _thresholds(Edema=low)
    values = json.loads(json.dumps(thresholds_to_json(thresholds)))
    assert thresholds_from_json(values, "file") == thresholds


def test_thresholds_from_json_without_rule_and_interval_was_tuned_as_before_there_was_a_choice():
    values = thresholds_to_json(_thresholds())
    for value in values.values():
        del value["rule"], value["interval"]
    for value in thresholds_from_json(values, "file").values():
        assert (value.rule, value.interval) == ("point", "wilson_images")


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
        pytest.param(
            lambda f: f["Mass"].update(rule="guess"),
            "Mass.rule must be one of point, conservative, fallback_few_positives, imported."
            " Received: 'guess'",
            id="rule",
        ),
        pytest.param(
            lambda f: f["Mass"].update(interval=["wilson_images"]),
            r"Mass.interval must be one of wilson_images, .* Received: \['wilson_images'\]",
            id="interval",
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


def _imported(**changes):
    unknown = dict.fromkeys(("recall", "recall_low", "recall_high", "precision", "positives"))
    value = {"threshold": 0.25, **unknown, "rule": "imported", "interval": None}
    return dict.fromkeys(ABNORMAL_FINDINGS, value | changes)


def test_thresholds_imported_may_have_nothing_behind_them():
    thresholds = thresholds_from_json(_imported(), "file")
    assert thresholds["Mass"] == Threshold(0.25, None, None, None, None, None, "imported", None)
    assert thresholds_to_json(thresholds) == _imported()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": None}, "threshold must be a number. Received: None"),
        ({"rule": "point"}, "recall must be a number. Received: None"),
    ],
    ids=["no threshold", "another rule"],
)
def test_thresholds_nothing_behind_them_is_refused_elsewhere(changes, message):
    with pytest.raises(InputError, match=message):
        thresholds_from_json(_imported(**changes), "file")
