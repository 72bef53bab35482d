import math

import numpy as np
import pytest

from model import phantoms
from model.phantoms import draw_phantom
from schemas.findings import ABNORMAL_FINDINGS, FINDINGS, NO_FINDING, parse_labels


@pytest.fixture(scope="module")
def many():
    return [draw_phantom(seed=11, index=index, size=64) for index in range(300)]


@pytest.fixture
def draw_clear(monkeypatch):
    """Returns a function that draws chosen findings under a fixed, noiseless exposure.

    Anatomy draws the same random numbers whatever is found, so phantoms of one index
    differ by their findings alone.
    """
    monkeypatch.setattr(
        phantoms,
        "_expose",
        lambda brightness, rng: (np.clip(brightness, 0, 1) * 255 + 0.5).astype(np.uint8),
    )

    def draw(index, *findings):
        monkeypatch.setattr(phantoms, "_choose_findings", lambda rng: findings)
        return draw_phantom(seed=1, index=index, size=256)

    return draw


def box_mask(phantom):
    (box,) = phantom.boxes
    mask = np.zeros(phantom.pixels.shape, bool)
    bottom, right = math.ceil(box.y + box.height), math.ceil(box.x + box.width)
    mask[int(box.y) : bottom, int(box.x) : right] = True
    return mask


@pytest.mark.parametrize("size", [64, 100, 256])
def test_phantom_any_size_is_grey_square(size):
    phantom = draw_phantom(seed=0, index=0, size=size)
    assert phantom.pixels.shape == (size, size)
    assert phantom.pixels.dtype == np.uint8
    assert phantom.pixels.std() > 20


def test_phantom_same_arguments_same_in_all():
    first, second = (draw_phantom(seed=7, index=3, size=128) for _ in range(2))
    assert first.pixels.tobytes() == second.pixels.tobytes()
    assert (first.findings, first.boxes) == (second.findings, second.boxes)


@pytest.mark.parametrize(("seed", "index"), [(8, 3), (7, 4), (3, 7)])
def test_phantom_other_seed_or_index_differs(seed, index):
    phantom = draw_phantom(seed=7, index=3, size=128)
    other = draw_phantom(seed=seed, index=index, size=128)
    assert (phantom.pixels != other.pixels).mean() > 0.5


def test_phantom_any_order_of_drawing_is_the_same():
    forwards = [draw_phantom(seed=2, index=index, size=64).pixels for index in range(4)]
    backwards = [draw_phantom(seed=2, index=index, size=64).pixels for index in (3, 2, 1, 0)]
    np.testing.assert_array_equal(forwards, backwards[::-1])


def test_phantom_too_small_raises():
    with pytest.raises(ValueError) as caught:
        draw_phantom(seed=0, index=0, size=63)
    assert str(caught.value) == "size must be at least 64 pixels. Received: size=63."


def test_phantoms_many_show_every_class(many):
    assert {name for phantom in many for name in phantom.findings} == set(FINDINGS)


def test_phantoms_many_are_about_a_third_normal(many):
    share = sum(phantom.findings == (NO_FINDING,) for phantom in many) / len(many)
    # 0.35 within three standard deviations.
    assert 0.27 < share < 0.43


def test_phantoms_many_have_labels_that_parse(many):
    for phantom in many:
        assert parse_labels("|".join(phantom.findings)) == phantom.findings
        assert phantom.findings == tuple(sorted(set(phantom.findings)))
        assert len(phantom.findings) <= 3


def test_phantoms_many_have_one_box_a_finding(many):
    for phantom in many:
        boxed = tuple(box.finding for box in phantom.boxes)
        assert boxed == (() if phantom.findings == (NO_FINDING,) else phantom.findings)


def test_phantoms_many_have_boxes_inside_the_frame(many):
    for box in (box for phantom in many for box in phantom.boxes):
        assert min(box.x, box.y) >= 0
        assert min(box.width, box.height) > 2
        # Sums of tenths are off by a bit.
        assert max(box.x + box.width, box.y + box.height) <= 64 + 1e-9


def test_phantom_without_finding_is_no_finding_alone(draw_clear):
    phantom = draw_clear(0)
    assert phantom.findings == (NO_FINDING,)
    assert phantom.boxes == ()


@pytest.mark.parametrize("finding", ABNORMAL_FINDINGS)
def test_finding_drawn_changes_pixels_inside_its_box(finding, draw_clear):
    for index in range(4):
        phantom, normal = draw_clear(index, finding), draw_clear(index)
        change = np.abs(phantom.pixels.astype(int) - normal.pixels)
        inside = box_mask(phantom)
        assert phantom.findings == (finding,)
        assert change[inside].mean() > 10
        assert change[inside].mean() > 20 * change[~inside].mean()
        assert change[inside].sum() > 0.85 * change.sum()


@pytest.mark.parametrize("finding", ABNORMAL_FINDINGS)
def test_finding_under_noise_is_seen_in_its_box(finding, monkeypatch):
    """The change is more than another exposure and noise make of the same anatomy."""
    drawn = {}
    for name, findings in (("with", (finding,)), ("without", ())):
        monkeypatch.setattr(phantoms, "_choose_findings", lambda rng, findings=findings: findings)
        drawn[name] = draw_phantom(seed=4, index=1, size=256)
    inside = box_mask(drawn["with"])
    outside_with, outside_without = (drawn[name].pixels[~inside] for name in drawn)
    # A line through the levels outside takes the exposures' difference away.
    line = np.polyfit(outside_with.astype(float), outside_without, 1)
    residual = np.abs(np.polyval(line, drawn["with"].pixels) - drawn["without"].pixels)
    assert residual[inside].mean() > 2 * residual[~inside].mean()
