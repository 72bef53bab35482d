"""The frozen graph: equal scores however batched, views, memory, refusals."""

import copy

import numpy as np
import pytest

from model import tta
from model.scorer import Borderline, Scorer
from schemas.contract import VIEW_BRIGHTNESS, VIEWS
from schemas.findings import FINDINGS


@pytest.fixture(scope="module")
def six_view_scorer(demo_network):
    """The demonstration network, frozen, six views an image."""
    return Scorer(demo_network, tta_mode="all")


def test_score_equals_the_keras_network(demo_network, demo_scorer, squares):
    scores = demo_scorer.score(squares[:5])
    expected = np.asarray(demo_network(squares[:5], training=False))
    np.testing.assert_allclose(scores.scores, expected, atol=1e-5)
    assert (scores.scores.dtype, scores.scores.shape) == (np.float32, (5, 15))
    assert (scores.cams.dtype, scores.cams.shape) == (np.float32, (5, 15, 7, 7))
    np.testing.assert_array_equal(scores.views, np.ones(5, np.int8))


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_score_any_batch_size_and_order_gives_the_same(demo_scorer, squares, batch_size):
    whole = demo_scorer.score(squares)
    order = np.random.default_rng(batch_size).permutation(len(squares))
    parts = [
        demo_scorer.score(squares[order[start : start + batch_size]])
        for start in range(0, len(squares), batch_size)
    ]
    scores = np.concatenate([part.scores for part in parts])
    cams = np.concatenate([part.cams for part in parts])
    np.testing.assert_allclose(scores, whole.scores[order], atol=1e-5)
    np.testing.assert_allclose(cams, whole.cams[order], atol=1e-4)


def test_score_all_views_averages_six_and_keeps_the_original_cams(
    demo_network, demo_scorer, six_view_scorer, squares
):
    images = squares[:3]
    scored = six_view_scorer.score(images)
    views = [images, *(np.asarray(view) for view in tta.further_views(images))]
    assert len(views) == len(VIEWS) == 6
    expected = np.mean([np.asarray(demo_network(view)) for view in views], axis=0)
    np.testing.assert_allclose(scored.scores, expected, atol=1e-5)
    np.testing.assert_allclose(scored.cams, demo_scorer.score(images).cams, atol=1e-5)
    np.testing.assert_array_equal(scored.views, [6, 6, 6])


def test_further_views_are_what_they_are_called(squares):
    image = squares[:1]
    flip, brighter, darker, more, less = (np.asarray(v) for v in tta.further_views(image))
    assert {v.dtype for v in (flip, brighter, darker, more, less)} == {np.dtype(np.uint8)}
    np.testing.assert_array_equal(flip, image[:, :, ::-1])
    shift = 255 * VIEW_BRIGHTNESS
    np.testing.assert_array_equal(brighter, np.round(np.clip(image + shift, 0, 255)))
    np.testing.assert_array_equal(darker, np.round(np.clip(image - shift, 0, 255)))
    assert more.std() > image.std() > less.std()


def test_score_borderline_looks_again_only_near_a_threshold(
    demo_network, demo_scorer, six_view_scorer, squares
):
    images = squares[:10]
    single = demo_scorer.score(images).scores
    full = six_view_scorer.score(images).scores
    effusion = FINDINGS.index("Effusion")
    thresholds = np.full(15, np.inf, np.float32)
    thresholds[effusion] = np.median(single[:, effusion])
    band = float(np.quantile(np.abs(single[:, effusion] - thresholds[effusion]), 0.4))
    scorer = Scorer(demo_network, tta_mode="borderline", borderline=Borderline(thresholds, band))
    scored = scorer.score(images)
    near = np.abs(single[:, effusion] - thresholds[effusion]) <= band
    assert 0 < near.sum() < len(images)
    np.testing.assert_array_equal(scored.views, np.where(near, 6, 1))
    expected = np.where(near[:, np.newaxis], full, single)
    np.testing.assert_allclose(scored.scores, expected, atol=1e-5)


def test_borderline_ignores_no_finding():
    thresholds = np.full(15, np.inf, np.float32)
    thresholds[FINDINGS.index("No Finding")] = 0.5
    assert not Borderline(thresholds, 1.0).selects(np.full((1, 15), 0.5)).any()


def _graph_with_room_for(limit, sizes, whole):
    def graph(images):
        sizes.append(len(images))
        if len(images) > limit:
            raise MemoryError(f"{len(images)} images")
        return whole(images)

    return graph


def test_score_out_of_memory_halves_the_batch_and_remembers(demo_scorer, squares, monkeypatch):
    scorer, sizes = copy.copy(demo_scorer), []  # it remembers
    monkeypatch.setattr(scorer, "_graph", _graph_with_room_for(5, sizes, scorer._graph))
    first = scorer.score(squares[:16]).scores
    assert sizes == [16, 8, 4, 4, 4, 4]
    scorer.score(squares[:16])
    assert sizes[6:] == [4, 4, 4, 4]
    np.testing.assert_allclose(first, demo_scorer.score(squares[:16]).scores, atol=1e-5)


def test_score_not_even_one_image_fits_raises_memory_error(demo_scorer, squares, monkeypatch):
    scorer = copy.copy(demo_scorer)
    monkeypatch.setattr(scorer, "_graph", _graph_with_room_for(0, [], scorer._graph))
    with pytest.raises(MemoryError, match="1 images"):
        scorer.score(squares[:4])


@pytest.mark.parametrize(
    "images",
    [
        pytest.param(np.zeros((2, 224, 224), np.float32), id="float, perhaps divided by 255"),
        pytest.param(np.zeros((2, 224, 224, 3), np.uint8), id="colour"),
        pytest.param(np.zeros((2, 96, 96), np.uint8), id="another size"),
    ],
)
def test_score_another_input_is_refused(demo_scorer, images):
    with pytest.raises(ValueError, match=r"images must be uint8 \(batch, 224, 224\). Received"):
        demo_scorer.score(images)


def test_scorer_modes_and_their_rule_must_agree(demo_network):
    with pytest.raises(ValueError, match="tta_mode must be one of"):
        Scorer(demo_network, tta_mode="twice")
    with pytest.raises(ValueError, match="borderline must be given"):
        Scorer(demo_network, tta_mode="borderline")
