"""Closed-form Grad-CAM against automatic differentiation, and against chance."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from model.bundle import demo_bundle_path, load_bundle_info
from model.phantoms import draw_phantom
from model.preprocessing import to_square
from model.scorer import Scorer
from model.thresholds import threshold_vector
from schemas.findings import FINDINGS
from schemas.tables import CAM_SIDE


def _maps_by_tape(network, images):
    """Grad-CAM as the paper has it: differentiate each logit by the feature map."""
    split = keras.Model(
        network.input,
        [network.get_layer("average_pool").input, network.get_layer("logits").output],
    )
    head = keras.Model(network.get_layer("average_pool").input, network.get_layer("logits").output)
    features, _ = split(images, training=False)
    with tf.GradientTape() as tape:
        tape.watch(features)
        logits = head(features, training=False)
    gradients = tape.jacobian(logits, features)
    per_image = tf.stack([gradients[n, :, n] for n in range(len(images))])
    weights = tf.reduce_mean(per_image, axis=(2, 3))
    maps = tf.nn.relu(tf.einsum("nijc,nkc->nkij", features, weights)).numpy()
    highest = maps.max(axis=(2, 3), keepdims=True)
    return np.divide(maps, highest, out=np.zeros_like(maps), where=highest > 0)


def test_cams_closed_form_equals_differentiation_through_the_network(
    demo_network, demo_scorer, squares
):
    expected = _maps_by_tape(demo_network, squares[:6])
    np.testing.assert_allclose(demo_scorer.score(squares[:6]).cams, expected, atol=1e-4)
    assert (expected.max(axis=(2, 3)) == 1).any()


def test_cams_without_positive_evidence_are_zero_and_never_nan(demo_network, squares):
    network = keras.models.clone_model(demo_network)
    network.set_weights(demo_network.get_weights())
    logits = network.get_layer("logits")
    logits.kernel.assign(np.zeros(logits.kernel.shape))
    cams = Scorer(network).score(squares[:2]).cams
    np.testing.assert_array_equal(cams, np.zeros((2, len(FINDINGS), 7, 7)))


@pytest.fixture(scope="module")
def flagged(demo_scorer):
    """Network inputs of phantoms, and the boxes of the findings that are rightly flagged.

    A box is `(image, finding, left, top, right, bottom)`, in cells of the map. Only of
    what is flagged a map is ever stored or drawn.
    """
    size, images, boxes = 448, [], []
    for index in range(150):
        phantom = draw_phantom(31, index, size)
        if phantom.boxes:
            corners = [
                (len(images), FINDINGS.index(b.finding), b.x, b.y, b.x + b.width, b.y + b.height)
                for b in phantom.boxes
            ]
            boxes += [
                (*box[:2], *(value / size * CAM_SIDE for value in box[2:])) for box in corners
            ]
            images.append(to_square(Image.fromarray(phantom.pixels)))
    images = np.stack(images)
    thresholds = threshold_vector(load_bundle_info(demo_bundle_path()).thresholds["none"])
    flags = demo_scorer.score(images).scores >= thresholds
    return images, [box for box in boxes if flags[box[0], box[1]]]


def _share_of_peaks_inside(cams, boxes):
    inside = []
    for image, finding, left, top, right, bottom in boxes:
        row, column = np.unravel_index(cams[image, finding].argmax(), (CAM_SIDE, CAM_SIDE))
        inside.append(left <= column + 0.5 <= right and top <= row + 0.5 <= bottom)
    return np.mean(inside)


def test_cams_peak_falls_in_the_box_twice_as_often_as_the_centre_does(
    demo_network, demo_scorer, flagged
):
    images, boxes = flagged
    assert len(boxes) > 100
    middle = CAM_SIDE / 2
    centre = np.mean([x0 <= middle <= x1 and y0 <= middle <= y1 for _, _, x0, y0, x1, y1 in boxes])
    hits = _share_of_peaks_inside(demo_scorer.score(images).cams, boxes)
    assert hits >= 2 * centre, f"{hits:.3f} against {centre:.3f}"

    shuffled = keras.models.clone_model(demo_network)
    shuffled.set_weights(demo_network.get_weights())
    rng = np.random.default_rng(0)
    for name in ("hidden_1", "hidden_2", "logits"):
        kernel = shuffled.get_layer(name).kernel
        kernel.assign(rng.permutation(np.asarray(kernel).ravel()).reshape(kernel.shape))
    chance = _share_of_peaks_inside(Scorer(shuffled).score(images).cams, boxes)
    assert chance < 2 * centre, f"{chance:.3f} against {centre:.3f}"
