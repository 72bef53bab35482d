"""Random changes of training images: what is drawn, and what it does to pixels."""

import numpy as np
import pytest
from PIL import Image

from model.augmentation import ChangeImages, draw_changes
from model.training_config import Augmentation

_NONE = Augmentation(flip=False, brightness=0.0, contrast=0.0, zoom=1.0)


def _changed(images, augmentation, size=224, seed=0):
    changes = draw_changes(augmentation, len(images), 224, np.random.default_rng(seed))
    return np.asarray(ChangeImages(size)(images, *changes)), changes


def test_change_images_with_everything_off_changes_no_pixel(squares):
    changed, _ = _changed(squares[:4], _NONE)
    assert changed.dtype == np.uint8
    np.testing.assert_array_equal(changed, squares[:4])


def test_change_images_flip_mirrors_about_half_exactly(squares):
    changed, (places, _) = _changed(squares, Augmentation(True, 0.0, 0.0, 1.0))
    mirrored = places[:, 0] < 0
    assert 10 < mirrored.sum() < 30
    np.testing.assert_array_equal(changed[mirrored], squares[mirrored][:, :, ::-1])
    np.testing.assert_array_equal(changed[~mirrored], squares[~mirrored])


def test_change_images_zoom_is_a_crop_inside_the_image(squares):
    changed, (places, _) = _changed(squares[:6], Augmentation(False, 0.0, 0.0, 0.6))
    for image, original, (kept, _, left, _, _, top, *_) in zip(
        changed, squares, places, strict=False
    ):
        assert 0.6 <= kept <= 1
        assert left >= 0 and left + kept * 223 <= 223.001
        assert top >= 0 and top + kept * 223 <= 223.001
        # Pillow has pixel edges where the transform has pixel centres.
        box = (left - kept / 2 + 0.5, top - kept / 2 + 0.5)
        box = tuple(np.clip((*box, box[0] + kept * 224, box[1] + kept * 224), 0, 224))
        expected = Image.fromarray(original).resize((224, 224), Image.Resampling.BILINEAR, box=box)
        difference = np.abs(np.asarray(expected, np.float32) - image)
        assert difference[2:-2, 2:-2].mean() < 1.5


def test_change_images_brightness_and_contrast_stay_in_their_bounds(squares):
    grey = np.full((50, 224, 224), 100, np.uint8)
    grey[:, ::2] = 120
    changed, (_, levels) = _changed(grey, Augmentation(False, 0.1, 0.1, 1.0))
    assert (np.abs(levels[:, 0]) <= 25.5).all() and np.ptp(levels[:, 0]) > 25
    assert (np.abs(levels[:, 1] - 1) <= 0.1).all() and np.ptp(levels[:, 1]) > 0.1
    np.testing.assert_allclose(changed[:, 0, 0], 110 + levels[:, 0] + 10 * levels[:, 1], atol=0.51)
    np.testing.assert_allclose(changed[:, 1, 0], 110 + levels[:, 0] - 10 * levels[:, 1], atol=0.51)


def test_change_images_beyond_the_range_is_cut_off():
    white = np.full((20, 224, 224), 250, np.uint8)
    changed, (_, levels) = _changed(white, Augmentation(False, 0.1, 0.0, 1.0))
    assert (changed[levels[:, 0] > 6] == 255).all()


def test_change_images_smaller_size_averages(squares):
    changed, _ = _changed(squares[:3], _NONE, size=96)
    assert changed.shape == (3, 96, 96)
    for image, original in zip(changed, squares, strict=False):
        expected = Image.fromarray(original).resize((96, 96), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(expected, np.int16) - image).max() <= 1


@pytest.mark.parametrize("off", ["flip", "brightness", "contrast", "zoom"])
def test_draw_changes_switching_one_off_leaves_the_others_as_they_were(off):
    on = Augmentation(True, 0.1, 0.1, 0.9)
    values = {"flip": False, "brightness": 0.0, "contrast": 0.0, "zoom": 1.0}
    without = Augmentation(**{**vars(on), off: values[off]})
    drawn, other = (draw_changes(a, 30, 224, np.random.default_rng(3)) for a in (on, without))
    differ = {
        "flip": (drawn[0][:, 0] < 0) != (other[0][:, 0] < 0),
        "zoom": drawn[0][:, 4] != other[0][:, 4],
        "brightness": drawn[1][:, 0] != other[1][:, 0],
        "contrast": drawn[1][:, 1] != other[1][:, 1],
    }
    assert {name for name, value in differ.items() if value.any()} == {off}
