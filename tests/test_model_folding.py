"""Folding changes the cost of the network, not what it says."""

import keras
import numpy as np

from model.folding import fold_batch_norms


def _layers(model, kind):
    nested = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    own = [layer for layer in model.layers if isinstance(layer, kind)]
    return own + [layer for inner in nested for layer in _layers(inner, kind)]


def test_fold_batch_norms_gives_the_same_scores_without_any_normalisation(demo_network, squares):
    before = demo_network.get_weights()
    folded = fold_batch_norms(demo_network)
    assert len(_layers(demo_network, keras.layers.BatchNormalization)) == 49
    assert not _layers(folded, keras.layers.BatchNormalization)
    scores = np.asarray(folded(squares[:8]))
    np.testing.assert_allclose(scores, np.asarray(demo_network(squares[:8])), atol=1e-5)
    assert scores.std() > 0.01
    for weights, kept in zip(before, demo_network.get_weights(), strict=True):
        np.testing.assert_array_equal(weights, kept)
