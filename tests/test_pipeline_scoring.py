"""Scoring: every image once, in order; a bad one costs itself and no other."""

import dataclasses
import hashlib

import numpy as np
import pytest
from apache_beam import Create
from apache_beam.internal import pickler

from model import serving
from model.scorer import Borderline, Scores
from pipeline.elements import RejectedImage, ScoredImage
from pipeline.scoring import (
    REJECTED,
    SCORED,
    ScoreImages,
    ScorerSettings,
    ScoringHandler,
    load_scorer,
    score_batch,
)
from schemas.findings import FINDINGS
from schemas.rejects import Reason
from tests.fakes import (
    INFINITE_SCORE,
    NAN_CAM,
    NAN_SCORE,
    POISON,
    FakeScorer,
    collect,
    loaded_image,
    picture,
    scored_image,
    varied_picture,
)

SETTINGS = ScorerSettings("bundle", "0123456789ab", "float32", "none")


@pytest.fixture
def scorer(monkeypatch):
    return FakeScorer().install(monkeypatch)


def marked(index, mark=0):
    pixels = varied_picture(index)
    pixels[-14:] = mark
    return loaded_image(f"i{index:02d}", pixels)


def batch_of(count, marks=None):
    """Returns varied images; `marks` says of some what is wrong with them."""
    return [marked(index, (marks or {}).get(index, 0)) for index in range(count)]


def summary(image):
    """Returns all that a result holds, as something that can be compared."""
    if isinstance(image, RejectedImage):
        error = image.error
        return (image.row, error.reason, error.detail, image.size_bytes, image.source_version)
    arrays = image.scores.tobytes() + image.cams.tobytes()
    return (image.row, image.facts, hashlib.sha256(arrays).hexdigest(), image.views)


def alone(image):
    """Returns the summary of what a good image gives without any other."""
    return summary(scored_image(image.row.image_id, image.pixels))


def rejected(image, reason, detail):
    return (image.row, reason, detail, image.facts.size_bytes, image.facts.source_version)


# A batch


def test_score_batch_gives_the_networks_numbers_of_each_image_in_order(scorer):
    levels = dict(zip(FINDINGS, range(10, 160, 10), strict=True))
    results = score_batch(
        [loaded_image("a", picture(255)), loaded_image("b", picture(levels))], scorer
    )
    assert [type(result) for result in results] == [ScoredImage, ScoredImage]
    assert [result.row.image_id for result in results] == ["a", "b"]
    assert results[0].scores.tolist() == [1.0] * 15
    expected = np.array(list(levels.values()), np.float32) / np.float32(255)
    assert results[1].scores.dtype == np.float32
    np.testing.assert_array_equal(results[1].scores, expected)
    assert results[1].cams.shape == (15, 7, 7) and results[1].views == 1
    assert results[1].facts == loaded_image("b", picture(levels)).facts


@pytest.mark.parametrize("at", [0, 13, 31], ids=["first", "inside", "last"])
def test_score_batch_one_poisoned_image_among_32_costs_exactly_itself(scorer, at):
    batch = batch_of(32, {at: POISON})
    expected = [alone(image) for image in batch_of(32)]
    expected[at] = rejected(batch[at], Reason.INFERENCE_ERROR, "InvalidArgumentError")
    assert [summary(result) for result in score_batch(batch, scorer)] == expected


@pytest.mark.parametrize(
    ("count", "poisoned"),
    [(1, {0}), (2, {0, 1}), (7, {2, 3, 6}), (16, set(range(16)))],
    ids=["alone", "both", "three_of_seven", "all"],
)
def test_score_batch_several_poisoned_images_cost_exactly_themselves(scorer, count, poisoned):
    results = score_batch(batch_of(count, dict.fromkeys(poisoned, POISON)), scorer)
    assert [result.row.image_id for result in results] == [
        f"i{index:02d}" for index in range(count)
    ]
    found = {index for index in range(count) if isinstance(results[index], RejectedImage)}
    assert found == poisoned


@pytest.mark.parametrize(
    "mark", [NAN_SCORE, INFINITE_SCORE, NAN_CAM], ids=["nan_score", "infinite_score", "nan_cam"]
)
def test_score_batch_number_that_is_not_finite_costs_exactly_its_image(scorer, mark):
    batch = batch_of(8, {5: mark})
    expected = [alone(image) for image in batch_of(8)]
    detail = "the network gave NaN or infinity"
    expected[5] = rejected(batch[5], Reason.NON_FINITE_SCORE, detail)
    assert [summary(result) for result in score_batch(batch, scorer)] == expected
    assert scorer.batches == [8]


class Distant(FakeScorer):
    """Knows how far each image is."""

    def score(self, images):
        distances = np.array([30.0, 31.5, 32.0], np.float32)
        return dataclasses.replace(super().score(images), distances=distances)


def test_score_batch_image_far_from_the_training_data_has_the_code_and_its_distance():
    settings = dataclasses.replace(SETTINGS, feature_distance=("ab" * 32, 31.5))
    results = score_batch(batch_of(3), Distant(), settings.is_far)
    assert [result.distance for result in results] == [30.0, 31.5, 32.0]
    assert [list(result.facts.quality) for result in results] == [[], [], ["far_from_training"]]


def test_score_batch_far_image_is_rejected_where_that_is_asked_for():
    settings = dataclasses.replace(SETTINGS, feature_distance=("ab" * 32, 31.5))
    batch = batch_of(3)
    *near, far = score_batch(batch, Distant(), settings.is_far, rejects_gated=True)
    assert [type(result) for result in near] == [ScoredImage, ScoredImage]
    detail = "quality: far_from_training"
    assert summary(far) == rejected(batch[2], Reason.FAR_FROM_TRAINING, detail)


@pytest.mark.parametrize("extra", [-1, 1], ids=["too_few", "too_many"])
def test_score_batch_wrong_number_of_results_is_an_error(extra):
    class Careless:
        """Loses or invents a result."""

        def score(self, images):
            count = len(images) + extra
            return Scores(
                np.zeros((count, 15), np.float32),
                np.zeros((count, 15, 7, 7), np.float32),
                np.ones(count, np.int8),
            )

    with pytest.raises(ValueError, match="zip"):
        score_batch(batch_of(4), Careless())


def test_score_batch_out_of_memory_is_no_reject():
    class Full:
        """Has no memory left even for one image."""

        def score(self, images):
            raise MemoryError("one image does not fit")

    with pytest.raises(MemoryError, match="one image does not fit"):
        score_batch(batch_of(4), Full())


# In a pipeline


def score(batch, batch_size):
    """Scores images in a pipeline; returns summaries of the scored and of the rejected."""

    def build(pipeline):
        scored = pipeline | Create(batch, reshuffle=False) | ScoreImages(SETTINGS, batch_size)
        return {tag: scored[tag] for tag in (SCORED, REJECTED)}

    outputs = collect(build)
    return [[summary(image) for image in outputs[tag]] for tag in (SCORED, REJECTED)]


@pytest.mark.parametrize(
    ("count", "batch_size", "batches"),
    [(10, 4, [4, 4, 2]), (70, 32, [32, 32, 6]), (3, 1, [1, 1, 1]), (10, 64, [10])],
    ids=["of_4", "of_32", "of_1", "larger_than_all"],
)
def test_score_images_batches_are_of_the_size_asked_for(scorer, count, batch_size, batches):
    batch = batch_of(count)
    assert score(batch, batch_size) == [[alone(image) for image in batch], []]
    assert scorer.batches == batches


def test_score_images_rejects_go_their_own_way(scorer):
    batch = batch_of(12, {1: NAN_SCORE, 6: POISON, 11: NAN_CAM})
    bad = {
        1: (Reason.NON_FINITE_SCORE, "the network gave NaN or infinity"),
        6: (Reason.INFERENCE_ERROR, "InvalidArgumentError"),
        11: (Reason.NON_FINITE_SCORE, "the network gave NaN or infinity"),
    }
    good = [alone(image) for index, image in enumerate(batch) if index not in bad]
    lost = [rejected(batch[index], *why) for index, why in bad.items()]
    assert score(batch, 5) == [good, lost]


def test_scoring_handler_pickled_loads_the_scorer_of_its_process(scorer):
    handler = pickler.loads(pickler.dumps(ScoringHandler(SETTINGS, 4)))
    assert handler.load_model() is scorer


def test_scoring_handler_bounds_its_batches_from_both_sides():
    # With an upper bound alone Beam tries smaller ones, and others from run to run.
    expected = {"min_batch_size": 32, "max_batch_size": 32}
    assert ScoringHandler(SETTINGS, 32).batch_elements_kwargs() == expected


def test_scoring_handler_measures_the_pixels_of_a_batch():
    assert ScoringHandler(SETTINGS, 4).get_num_bytes(batch_of(3)) == 3 * 224 * 224


# Which scorer


@pytest.fixture
def made(monkeypatch):
    """The arguments with which scorers are made, none of them a real one."""
    calls = []

    def make(network, **options):
        calls.append((network, options))
        return FakeScorer()

    monkeypatch.setattr(serving, "Scorer", make)
    monkeypatch.setattr(serving, "load_network", lambda folder: f"network of {folder}")
    load_scorer.cache_clear()
    yield calls
    load_scorer.cache_clear()


def test_load_scorer_same_settings_load_the_network_once(made):
    first = load_scorer(SETTINGS)
    again = load_scorer(ScorerSettings("bundle", "0123456789ab", "float32", "none"))
    assert again is first
    expected = {"precision": "float32", "tta_mode": "none", "borderline": None, "distance": None}
    assert made == [("network of bundle", expected)]


@pytest.mark.parametrize(
    "other",
    [
        ScorerSettings("bundle", "another_model", "float32", "none"),
        ScorerSettings("bundle", "0123456789ab", "mixed_float16", "none"),
        ScorerSettings("bundle", "0123456789ab", "float32", "all"),
    ],
    ids=["model", "precision", "tta"],
)
def test_load_scorer_other_settings_give_another_scorer(made, other):
    assert load_scorer(SETTINGS) is not load_scorer(other)
    assert (made[1][1]["precision"], made[1][1]["tta_mode"]) == (other.precision, other.tta)


def test_load_scorer_borderline_gets_its_thresholds_and_band(made):
    thresholds = tuple([0.1] * 10 + [float("inf")] + [0.3] * 4)
    load_scorer(ScorerSettings("b", "m", "float32", "borderline", thresholds, 0.05))
    borderline = made[0][1]["borderline"]
    assert isinstance(borderline, Borderline) and borderline.band == 0.05
    assert borderline.thresholds.dtype == np.float32
    np.testing.assert_array_equal(borderline.thresholds, np.array(thresholds, np.float32))
