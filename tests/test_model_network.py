"""The network's input scaling, precision and backbone weights."""

import keras
import numpy as np
import pytest

from model.network import IMAGENET_SCALING, Scaling, build_network, set_precision
from schemas.errors import InputError

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


def test_build_network_with_another_scaling_applies_it_in_the_same_graph(network, ramp):
    scaling = Scaling(scale=(0.5, 0.25, 2.0), offset=(1.0, -3.0, 0.0))
    other = build_network(scaling=scaling)
    assert [layer.name for layer in other.layers] == [layer.name for layer in network.layers]
    scaled = keras.Model(other.input, other.get_layer("scaling").output)(ramp)
    expected = ramp[..., np.newaxis] * np.array(scaling.scale) + scaling.offset
    np.testing.assert_array_equal(np.asarray(scaled), expected.astype(np.float32))


def test_build_network_without_a_scaling_takes_that_of_imagenet(network):
    assert tuple(network.get_layer("scaling").scale) == IMAGENET_SCALING.scale
    assert tuple(network.get_layer("scaling").offset) == IMAGENET_SCALING.offset


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


def _share_of_change_nearby(network):
    """Returns how much of what a bright spot changes in the feature map is around the spot."""
    features = keras.Model(network.input, network.get_layer("average_pool").input)
    plain = np.full((1, 224, 224), 90, np.uint8)
    spot = plain.copy()
    spot[0, 112:128, 160:176] = 250
    change = np.abs(features.predict_on_batch(spot) - features.predict_on_batch(plain))[0]
    cells = change.sum(axis=-1)
    return cells[2:5, 4:7].sum() / cells.sum()


def test_build_network_from_scratch_keeps_evidence_in_its_place(monkeypatch):
    keras.utils.set_random_seed(0)
    assert _share_of_change_nearby(build_network()) > 0.7
    monkeypatch.setattr("model.network._SPREAD", 1.0)
    monkeypatch.setattr("model.network._FIRST_LOCAL_BLOCK", "none")
    assert _share_of_change_nearby(build_network()) < 0.5


def test_build_network_weights_file_gives_these_weights_and_the_same_graph(tmp_path):
    whole = keras.applications.EfficientNetB0(
        include_top=False, weights=None, input_shape=(64, 64, 3)
    )
    path = tmp_path / "backbone.weights.h5"
    whole.save_weights(path)
    network = build_network(64, str(path))
    layers = network.get_layer("backbone").layers
    compared = 0
    for layer in layers:
        for weights, expected in (
            zip(layer.get_weights(), whole.get_layer(layer.name).get_weights(), strict=True)
            if layer.weights
            else ()
        ):
            np.testing.assert_array_equal(weights, expected)
            compared += 1
    assert compared > 300
    assert [layer.name for layer in build_network(64).layers] == [
        layer.name for layer in network.layers
    ]


def test_build_network_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "x.weights.h5"
    path.write_text("no weights")
    with pytest.raises(InputError, match="--backbone-weights must be imagenet, .* Give a file of"):
        build_network(64, str(path))


def test_build_network_failed_download_is_explained(monkeypatch):
    def fail(**options):
        raise Exception("URL fetch failure on https://example.org: None\nmore")

    monkeypatch.setattr(keras.applications, "EfficientNetB0", fail)
    with pytest.raises(InputError, match="Received: imagenet: URL fetch .*Download them where"):
        build_network(64, "imagenet")
