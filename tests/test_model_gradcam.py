"""Closed-form Grad-CAM against automatic differentiation, and against chance."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from model.phantoms import draw_phantom
from model.preprocessing import to_square
from model.scorer import Scorer
from schemas.findings import FINDINGS


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
def boxed():
    """Network inputs of phantoms with findings, and their boxes as shares of the side."""
    size, images, boxes = 448, [], []
    for index in range(110):
        phantom = draw_phantom(31, index, size)
        if phantom.boxes:
            from PIL import Image

            images.append(to_square(Image.fromarray(phantom.pixels)))
            boxes.append(
                [
                    (FINDINGS.index(b.finding), *(v / size for v in (b.x, b.y, b.width, b.height)))
                    for b in phantom.boxes
                ]
            )
    return np.stack(images), boxes


def _share_inside(points, boxes):
    """Share of boxes that hold the point chosen for them."""
    inside = [
        x <= px <= x + width and y <= py <= y + height
        for image, found in enumerate(boxes)
        for finding, x, y, width, height in found
        for px, py in [points(image, finding)]
    ]
    return np.mean(inside)


def _peak(cams):
    def point(image, finding):
        row, column = np.unravel_index(cams[image, finding].argmax(), (7, 7))
        return (column + 0.5) / 7, (row + 0.5) / 7

    return point


def test_cams_peak_falls_in_the_box_twice_as_often_as_the_centre_does(
    demo_network, demo_scorer, boxed
):
    images, boxes = boxed
    centre = _share_inside(lambda image, finding: (0.5, 0.5), boxes)
    hits = _share_inside(_peak(demo_scorer.score(images).cams), boxes)
    assert hits >= 2 * centre, f"{hits:.3f} against {centre:.3f}"

    shuffled = keras.models.clone_model(demo_network)
    shuffled.set_weights(demo_network.get_weights())
    rng = np.random.default_rng(0)
    for name in ("hidden_1", "hidden_2", "logits"):
        kernel = shuffled.get_layer(name).kernel
        kernel.assign(rng.permutation(np.asarray(kernel).ravel()).reshape(kernel.shape))
    chance = _share_inside(_peak(Scorer(shuffled).score(images).cams), boxes)
    assert chance < 2 * centre, f"{chance:.3f} against {centre:.3f}"
