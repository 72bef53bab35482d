"""From a bundle to the settings of a scorer; scoring itself is in test_pipeline_scoring."""

import dataclasses
import json

import numpy as np
import pytest

from model.serving import ScorerSettings, choose_thresholds, score_each, scorer_settings
from model.thresholds import threshold_vector, thresholds_to_json
from schemas.errors import InputError
from schemas.rejects import Reason
from tests.fakes import NAN_SCORE, POISON, FakeScorer, make_bundle, make_thresholds, picture


def test_choose_thresholds_without_a_file_are_the_modes_own():
    bundle = dataclasses.replace(
        make_bundle(), thresholds={"none": make_thresholds(), "all": make_thresholds(0.3)}
    )
    assert choose_thresholds(bundle, "all") == make_thresholds(0.3)


def test_choose_thresholds_file_serves_a_mode_that_the_bundle_lacks(tmp_path):
    values = {"tta": "all", "findings": thresholds_to_json(make_thresholds(0.3))}
    (tmp_path / "t.json").write_text(json.dumps(values))
    path = str(tmp_path / "t.json")
    assert choose_thresholds(make_bundle(), "all", path) == make_thresholds(0.3)


def test_scorer_settings_borderline_take_thresholds_and_band_of_single_views():
    bundle = dataclasses.replace(
        make_bundle(),
        thresholds={"none": make_thresholds(0.3), "borderline": make_thresholds(0.4)},
        borderline_band=0.125,
    )
    vector = tuple(threshold_vector(make_thresholds(0.3)).tolist())
    expected = ScorerSettings(
        "folder", bundle.model_id, "float32", "borderline", vector, borderline_band=0.125
    )
    settings = scorer_settings("folder", bundle, tta="borderline", precision="float32")
    assert settings == expected


def test_scorer_settings_other_modes_have_no_borderline():
    bundle = dataclasses.replace(make_bundle(), borderline_band=0.125)
    expected = ScorerSettings("folder", bundle.model_id, "mixed_bfloat16", "all")
    assert scorer_settings("folder", bundle, tta="all", precision="mixed_bfloat16") == expected


def test_scorer_settings_borderline_without_single_view_thresholds_is_refused():
    bundle = dataclasses.replace(make_bundle(), thresholds={"borderline": make_thresholds()})
    with pytest.raises(InputError) as caught:
        scorer_settings("folder", bundle, tta="borderline", precision="float32")
    assert str(caught.value) == (
        "--tta borderline needs a bundle with thresholds for the mode none, which say"
        " what is borderline. Received: borderline."
    )


def test_score_each_bad_images_stand_in_their_place():
    marks = [0, NAN_SCORE, 0, POISON]
    images = np.stack([picture(51 * index, mark) for index, mark in enumerate(marks)])
    first, not_finite, third, poisoned = score_each(images, FakeScorer())
    assert first.scores.tolist() == [0.0] * 15 and first.views == 1
    assert third.scores.tolist() == [float(np.float32(0.4))] * 15
    assert not_finite.reason is Reason.NON_FINITE_SCORE
    assert poisoned.reason is Reason.INFERENCE_ERROR
