"""Fitting, applying, storing and refusing calibrations."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from model.calibration import (
    MIN_PATIENTS,
    Calibration,
    Scaling,
    calibration_from_json,
    fit_calibration,
)
from schemas.errors import InputError
from schemas.findings import ABNORMAL_FINDINGS, FINDINGS, NO_FINDING

MASS = FINDINGS.index("Mass")


def _calibration(**scalings):
    return Calibration(dict.fromkeys(ABNORMAL_FINDINGS) | scalings)


def _repeat(values):
    return np.repeat(np.asarray(values)[:, np.newaxis], 15, axis=1)


def _fit(scores, labels, patients, **options):
    """Returns the calibration and the errors; only Mass has labels, the rest is not tried."""
    all_labels = np.zeros((len(labels), 15), bool)
    all_labels[:, MASS] = labels
    calibration, errors = fit_calibration(_repeat(scores), all_labels, patients, **options)
    assert list(errors) == list(ABNORMAL_FINDINGS)
    return calibration, errors["Mass"]


def _labelled(seed, count=4000, slope=2.0, intercept=-1.0):
    """Returns scores and labels whose chance is the sigmoid of a line in the logit."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 1.5, count)
    labels = rng.random(count) < expit(slope * logits + intercept)
    return expit(logits).astype(np.float32), labels


def test_apply_known_values():
    scores = np.full((2, 15), 0.8, np.float32)
    scores[1] = 0.5
    probabilities = _calibration(Mass=Scaling(2.0, 0.0), Edema=Scaling(1.0, np.log(3))).apply(
        scores
    )
    assert probabilities.dtype == np.float32 and probabilities.shape == (2, 15)
    # Odds of 4 squared are 16; odds of 4 and 1, times 3, are 12 and 3.
    assert probabilities[:, MASS] == pytest.approx([16 / 17, 0.5], abs=1e-7)
    assert probabilities[:, FINDINGS.index("Edema")] == pytest.approx([12 / 13, 0.75], abs=1e-7)
    others = [k for k, name in enumerate(FINDINGS) if name not in ("Mass", "Edema")]
    assert (probabilities[:, others] == scores[:, others]).all()
    assert (scores[0] == np.float32(0.8)).all()


def test_apply_of_one_image_is_its_row():
    scores = np.random.default_rng(0).random((3, 15), np.float32)
    calibration = _calibration(Mass=Scaling(0.5, 1.0))
    assert (calibration.apply(scores)[1] == calibration.apply(scores[1])).all()


_SLOPES = st.floats(1e-3, 100)
_INTERCEPTS = st.floats(-50, 50)


@given(
    st.lists(st.floats(0, 1, width=32), min_size=2, max_size=30),
    st.builds(Scaling, _SLOPES, _INTERCEPTS),
)
@settings(deadline=None)
def test_apply_keeps_the_order_of_scores_and_stays_a_probability(scores, scaling):
    ordered = np.sort(np.array(scores, np.float32))
    probabilities = _calibration(Mass=scaling).apply(_repeat(ordered))[:, MASS]
    assert (np.diff(probabilities) >= 0).all()
    assert ((probabilities >= 0) & (probabilities <= 1)).all()


@given(
    st.lists(st.integers(1, 999), min_size=2, max_size=30, unique=True),
    st.builds(Scaling, st.floats(0.2, 2), st.floats(-3, 3)),
)
@settings(deadline=None)
def test_apply_scores_apart_by_a_thousandth_keep_their_exact_ranks(thousandths, scaling):
    scores = np.array(thousandths, np.float32) / 1000
    probabilities = _calibration(Mass=scaling).apply(_repeat(scores))[:, MASS]
    assert (np.argsort(probabilities) == np.argsort(scores)).all()


def test_apply_scores_of_0_and_1_are_numbers_beyond_all_others():
    tiny = np.finfo(np.float32).smallest_subnormal
    scores = np.array([0, tiny, 0.5, 1 - 2.0**-24, 1], np.float32)
    probabilities = _calibration(Mass=Scaling(0.1, 0.0)).apply(_repeat(scores))[:, MASS]
    assert np.isfinite(probabilities).all()
    assert (np.diff(probabilities) > 0).all()


@pytest.mark.parametrize(("slope", "intercept"), [(2.0, -1.0), (0.5, 1.0)])
def test_fit_calibration_finds_the_line_and_lowers_the_held_out_error(slope, intercept):
    scores, labels = _labelled(1, 20_000, slope, intercept)
    calibration, errors = _fit(scores, labels, np.arange(20_000))
    scaling = calibration.scalings["Mass"]
    assert (scaling.slope, scaling.intercept) == pytest.approx((slope, intercept), rel=0.1)
    assert errors["calibrated"] is True
    assert errors["log_loss_calibrated"] < errors["log_loss_scores"]
    reference = LogisticRegression(C=1e9, tol=1e-8).fit(logit(scores)[:, np.newaxis], labels)
    # Not closer, for the reference aims at 0 and 1 and Platt's targets lie beside them.
    assert scaling.slope == pytest.approx(reference.coef_[0, 0], rel=3e-3)
    assert scaling.intercept == pytest.approx(reference.intercept_[0], rel=3e-3)


def test_fit_calibration_scores_that_mislead_stay_as_they_are():
    scores, labels = _labelled(2, slope=-1.0, intercept=0.0)
    calibration, errors = _fit(scores, labels, np.arange(4000))
    assert calibration == _calibration()
    # Not for want of error: a constant would have less.
    assert errors["log_loss_calibrated"] < errors["log_loss_scores"]
    assert errors["calibrated"] is False


def test_fit_calibration_is_kept_only_where_the_held_out_error_is_lower():
    kept = 0
    for seed in range(12):
        # Probabilities already, and few of them: a fit is as often noise as not.
        scores, labels = _labelled(seed, 200, slope=1.0, intercept=0.0)
        calibration, errors = _fit(scores, labels, np.arange(200))
        lower = errors["log_loss_calibrated"] < errors["log_loss_scores"]
        assert (calibration.scalings["Mass"] is not None) == errors["calibrated"] == lower
        kept += lower
    assert 0 < kept < 12


def test_fit_calibration_error_is_of_patients_that_the_fit_did_not_see():
    # Each image twenty times: its copies would tell a fit what they are tested on.
    scores, labels = _labelled(5, 100, slope=1.0, intercept=0.0)
    scores, labels = np.repeat(scores, 20), np.repeat(labels, 20)
    apart = _fit(scores, labels, np.arange(2000))[1]
    grouped = _fit(scores, labels, np.repeat(np.arange(100), 20))[1]
    assert grouped["log_loss_scores"] == apart["log_loss_scores"]
    assert grouped["log_loss_calibrated"] > apart["log_loss_calibrated"]


@pytest.mark.parametrize("patients", [MIN_PATIENTS - 1, MIN_PATIENTS])
@pytest.mark.parametrize("flip", [False, True], ids=["positive", "negative"])
def test_fit_calibration_too_few_patients_of_a_kind_are_not_tried(patients, flip):
    scores, _ = _labelled(3, 400)
    labels = np.zeros(400, bool)
    labels[: 2 * patients] = True
    owner = np.append(np.repeat(np.arange(patients), 2), np.arange(1000, 1400 - 2 * patients))
    calibration, errors = _fit(scores, labels ^ flip, owner)
    tried = patients == MIN_PATIENTS
    assert (errors["log_loss_calibrated"] is not None) == tried
    if not tried:
        assert calibration == _calibration()
        assert errors == {
            "log_loss_scores": None,
            "log_loss_calibrated": None,
            "calibrated": False,
        }


def test_fit_calibration_scores_that_divide_without_an_error_give_a_finite_fit():
    scores = np.repeat(np.array([0.4, 0.6], np.float32), 50)
    labels = scores > 0.5
    calibration, _ = _fit(scores, labels, np.arange(100))
    scaling = calibration.scalings["Mass"]
    # Platt's targets are 51/52 and 1/52.
    assert calibration.apply(_repeat(scores))[[0, -1], MASS] == pytest.approx(
        [1 / 52, 51 / 52], abs=1e-4
    )
    assert np.isfinite([scaling.slope, scaling.intercept]).all()


def test_fit_calibration_scores_of_0_and_1_give_a_finite_fit():
    scores, labels = _labelled(4, 1000)
    scores[:20], scores[20:40] = 0, 1
    calibration, errors = _fit(scores, labels, np.arange(1000))
    assert np.isfinite(calibration.apply(_repeat(scores))).all()
    assert np.isfinite(errors["log_loss_scores"])


def test_fit_calibration_is_the_same_for_the_same_seed():
    scores, labels = _labelled(6, 500)
    patients = np.array([f"p{k % 90}" for k in range(500)])
    one = _fit(scores, labels, patients, seed=3)
    assert _fit(scores, labels, patients, seed=3) == one
    other = _fit(scores, labels, patients, seed=4)[1]
    assert other["log_loss_calibrated"] != one[1]["log_loss_calibrated"]


def test_calibration_json_and_pickle_round_trips_are_exact():
    calibration = _calibration(Mass=Scaling(0.1, -1 / 3), Hernia=Scaling(1.0, 0.0))
    values = json.loads(json.dumps(calibration.to_json()))
    assert NO_FINDING not in values and values["Edema"] is None
    assert calibration_from_json(values, "file") == calibration
    assert pickle.loads(pickle.dumps(calibration)) == calibration


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda v: v.pop("Mass"), "exactly the 14 findings.*Mass", id="missing"),
        pytest.param(
            lambda v: v.update({NO_FINDING: None}), "14 findings.*No Finding", id="No Finding"
        ),
        pytest.param(lambda v: v.update(Mass=[1, 0]), "Mass must be null or have", id="a list"),
        pytest.param(lambda v: v.update(Mass={"slope": 1}), "the keys slope, intercept", id="half"),
        pytest.param(
            lambda v: v["Mass"].update(slope=0), "Mass.slope must be a finite number over 0", id="0"
        ),
        pytest.param(lambda v: v["Mass"].update(slope=-1.5), "over 0. Received: -1.5", id="slope"),
        pytest.param(lambda v: v["Mass"].update(slope=True), "over 0. Received: True", id="bool"),
        pytest.param(
            lambda v: v["Mass"].update(slope=float("inf")), "over 0. Received: inf", id="infinite"
        ),
        pytest.param(
            lambda v: v["Mass"].update(intercept=float("nan")),
            "Mass.intercept must be a finite number. Received: nan",
            id="nan",
        ),
        pytest.param(
            lambda v: v["Mass"].update(intercept="0"), "a finite number. Received: '0'", id="text"
        ),
    ],
)
def test_calibration_from_json_broken_is_refused(change, message):
    values = _calibration(Mass=Scaling(1.0, 0.0)).to_json()
    change(values)
    with pytest.raises(InputError, match=f"file: calibration.*{message}"):
        calibration_from_json(values, "file")


@pytest.mark.parametrize("values", [[], "platt", 1, {}])
def test_calibration_from_json_of_another_kind_is_refused(values):
    with pytest.raises(InputError, match="must be null or for exactly the 14 findings"):
        calibration_from_json(values, "file")
