"""Frozen graphs: all images come back, in order, however they are cut into calls."""

import numpy as np
import pytest
from keras import ops

from model.frozen import FrozenGraph, freeze, pad_to_power_of_two


@pytest.mark.parametrize("count", [1, 8, 9, 37])
def test_frozen_graph_of_any_number_of_images_returns_each_in_order(count):
    graph = FrozenGraph(freeze(lambda images: [ops.max(images, axis=(1, 2)), images[:, 0]]))
    images = np.zeros((count, 224, 224), np.uint8)
    images[:, 0, 5] = np.arange(1, count + 1)
    highest, first_rows = graph(images)
    np.testing.assert_array_equal(highest, np.arange(1, count + 1))
    np.testing.assert_array_equal(first_rows, images[:, 0])


@pytest.mark.parametrize(("count", "padded"), [(1, 1), (2, 2), (3, 4), (5, 8), (32, 32)])
def test_pad_to_power_of_two_appends_black(count, padded):
    images = np.full((count, 224, 224), 9, np.uint8)
    result = pad_to_power_of_two(images)
    assert result.shape == (padded, 224, 224)
    np.testing.assert_array_equal(result[:count], images)
    assert not result[count:].any()
