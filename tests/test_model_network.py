"""The network's input scaling, precision and backbone weights."""

import keras
import numpy as np
import pytest

from model.network import build_network, set_precision

_MEAN = np.array([0.485, 0.456, 0.406])
_STD = np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def network():
    return build_network()


@pytest.fixture(scope="module")
def ramp():
    """All 256 grey levels, over and over."""
    return (
        np.repeat(np.arange(224 * 224, dtype=np.uint32) % 256, 1)
        .astype(np.uint8)[np.newaxis]
        .reshape(1, 224, 224)
    )


def _first_convolution_input(network, images):
    """What the first convolution sees in half precision, without the padding's border."""
    scaled = keras.Model(network.input, network.get_layer("scaling").output)(images)
    padding = network.get_layer("backbone").get_layer("stem_conv_pad")
    set_precision(network, "mixed_float16")
    seen = np.asarray(padding(scaled))[:, :-1, :-1]
    set_precision(network, "float32")
    assert seen.dtype == np.float16
    return seen


def _distinct_levels(seen):
    return [len(np.unique(seen[..., channel])) for channel in range(3)]


def test_scaling_any_grey_level_is_standardised_as_imagenet_once(network, ramp):
    scaled = keras.Model(network.input, network.get_layer("scaling").output)(ramp)
    expected = (ramp[..., np.newaxis] / 255 - _MEAN) / _STD
    np.testing.assert_allclose(np.asarray(scaled), expected, atol=1e-5)


def test_scaling_half_precision_keeps_at_least_200_of_256_levels(network, ramp):
    assert min(_distinct_levels(_first_convolution_input(network, ramp))) >= 200


def test_scaling_division_by_255_before_the_graph_loses_the_levels(ramp):
    """The seed's error: what reaches the convolution is all but one grey."""
    network = build_network()
    scaling = network.get_layer("scaling")
    scaling.scale = [scale / 255 for scale in scaling.scale]
    assert max(_distinct_levels(_first_convolution_input(network, ramp))) < 200


def test_build_network_from_a_backbone_file_has_the_same_graph_and_its_weights(tmp_path, network):
    keras.utils.set_random_seed(3)
    source = keras.applications.EfficientNetB0(
        include_top=False, weights=None, input_shape=(224, 224, 3)
    )
    source.save_weights(tmp_path / "backbone.weights.h5")
    loaded = build_network(backbone_weights=str(tmp_path / "backbone.weights.h5"))
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in network.layers]
    one, other = (model.get_layer("backbone").layers for model in (loaded, network))
    # But for the name of the input, which Keras numbers.
    assert [layer.name for layer in one[1:]] == [layer.name for layer in other[1:]]
    np.testing.assert_array_equal(
        loaded.get_layer("backbone").get_layer("top_conv").kernel,
        source.get_layer("top_conv").kernel,
    )


@pytest.mark.parametrize(
    ("precision", "bound"), [("mixed_float16", 0.01), ("mixed_bfloat16", 0.05)]
)
def test_set_precision_half_changes_scores_within_the_bound_and_back(
    demo_network, squares, precision, bound
):
    network = keras.models.clone_model(demo_network)
    network.set_weights(demo_network.get_weights())
    single = np.asarray(network(squares[:4]))
    set_precision(network, precision)
    half = np.asarray(network(squares[:4]))
    assert half.dtype == np.float32
    assert 0 < np.abs(half - single).max() < bound
    set_precision(network, "float32")
    np.testing.assert_array_equal(np.asarray(network(squares[:4])), single)
