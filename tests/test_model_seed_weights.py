"""Reading weights of Keras 2, and refusing every other file."""

import shutil

import h5py
import numpy as np
import pytest

from model.network import build_network
from model.seed_weights import assign_seed_weights, read_seed_weights
from schemas.errors import InputError
from tests.seed_files import MEAN, VARIANCE, keras_2_weights, write_weights


@pytest.fixture(scope="module")
def network():
    """With weights that all differ."""
    network = build_network()
    rng = np.random.default_rng(3)
    for weight in network.weights:
        weight.assign(rng.uniform(0.1, 1, weight.shape))
    return network


@pytest.fixture(scope="module")
def weights(network):
    return keras_2_weights(network)


@pytest.fixture(scope="module")
def blank():
    """Takes weights in; what it had before does not matter."""
    return build_network()


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("seed") / "weights.h5", weights)


@pytest.fixture
def copy(file, tmp_path):
    """A file to damage."""
    return shutil.copyfile(file, tmp_path / "copy.h5")


def _refusal(path) -> str:
    with pytest.raises(InputError) as caught:
        read_seed_weights(str(path))
    return str(caught.value)


@pytest.mark.parametrize(
    ("form", "second_rescaling"),
    [
        ({}, True),
        ({"whole": True}, True),
        ({"nested": True}, None),
        ({"rescalings": ("rescaling",)}, False),
        # Not the first models of their process.
        ({"rescalings": ("rescaling_2", "rescaling_3")}, True),
    ],
    ids=str,
)
def test_read_then_assign_any_form_gives_every_weight(
    network, blank, weights, tmp_path, form, second_rescaling
):
    path = write_weights(tmp_path / "w.h5", weights, **form)
    for weight in blank.weights:
        weight.assign(np.zeros(weight.shape))
    read = read_seed_weights(str(path))
    assign_seed_weights(blank, read, str(path))
    for one, other in zip(blank.weights, network.weights, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=other.path)
    np.testing.assert_array_equal(read.mean, MEAN)
    np.testing.assert_array_equal(read.variance, VARIANCE)
    assert read.whole_model == form.get("whole", False)
    assert read.second_rescaling is second_rescaling


def test_read_layers_with_higher_numbers_are_told_by_shape(network, blank, weights, tmp_path):
    numbers = {"dense": "dense_7", "dense_1": "dense_3", "dense_2": "output"}
    numbers["normalization"] = "normalization_4"
    renamed = {}
    for name, array in weights.items():
        layer, weight = name.split("/")
        renamed[f"{numbers.get(layer, layer)}/{weight}"] = array
    path = write_weights(tmp_path / "w.h5", renamed)
    assign_seed_weights(blank, read_seed_weights(str(path)), str(path))
    for one, other in zip(blank.weights, network.weights, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=other.path)


def _changed(weights, name, value):
    changed = dict(weights)
    if value is None:
        del changed[name]
    else:
        changed[name] = value
    return changed


@pytest.mark.parametrize(
    ("name", "value", "received"),
    [
        ("stem_conv/kernel:0", None, "missing stem_conv/kernel (3, 3, 3, 32); not wanted none."),
        (
            "stem_bn/gamma:0",
            np.ones(31),
            "missing stem_bn/gamma (32,); not wanted stem_bn/gamma (31,).",
        ),
        ("block9a_bn/gamma:0", np.ones(4), "missing none; not wanted block9a_bn/gamma (4,)."),
        (
            "dense_2/kernel:0",
            np.ones((256, 14)),
            "missing logits/kernel (256, 15), logits/bias (15,);"
            " not wanted dense_2/kernel (256, 14), dense_2/bias (15,).",
        ),
        ("dense_3/kernel:0", np.ones((256, 15)), "and 3 more; not wanted "),
    ],
    ids=["missing", "shape", "odd", "classes", "twice"],
)
def test_assign_other_weights_is_refused_by_name(blank, weights, tmp_path, name, value, received):
    path = write_weights(tmp_path / "w.h5", _changed(weights, name, value))
    before = [np.asarray(weight) for weight in blank.weights]
    with pytest.raises(InputError) as caught:
        assign_seed_weights(blank, read_seed_weights(str(path)), str(path))
    assert "EfficientNetB0 without its top and of three dense layers for 15" in str(caught.value)
    assert received in str(caught.value)
    for one, other in zip(blank.weights, before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("name", "value", "received"),
    [
        ("stem_bn/gamma:0", np.full(32, np.nan), "stem_bn/gamma must be finite. Received: NaN"),
        ("stem_bn/gamma:0", np.full(32, b"x"), "stem_bn/gamma must be numbers. Received: dtype"),
        ("normalization/mean:0", None, "mean of EfficientNetB0's normalization"),
        ("normalization/mean:0", np.ones(1), "Received: [1.0]"),
        ("normalization/variance:0", -np.ones(3), "Received: [-1.0, -1.0, -1.0]"),
        ("a/stem_bn/gamma:0", np.ones(32), "each weight once. Received: stem_bn/gamma twice"),
    ],
)
def test_read_what_no_training_gives_is_refused(weights, tmp_path, name, value, received):
    path = write_weights(tmp_path / "w.h5", _changed(weights, name, value))
    assert received in _refusal(path)


def test_read_weights_of_another_size_altogether_is_refused_unread(tmp_path):
    path = tmp_path / "bomb.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["stem_conv"]
        group = file.create_group("stem_conv")
        group.attrs["weight_names"] = ["stem_conv/kernel:0"]
        group.create_dataset(
            "stem_conv/kernel:0", (1 << 40,), "f4", chunks=(1 << 20,), compression="gzip"
        )
    assert "at most 67108864 bytes of weights. Received: 4398046511104." in _refusal(path)


@pytest.mark.parametrize("kind", ["external", "soft", "raw", "virtual", "group"])
def test_read_what_leads_out_of_the_file_is_refused(copy, file, tmp_path, kind):
    name, other = "stem_bn/gamma:0", "/stem_bn/stem_bn/beta:0"
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(128))
    with h5py.File(copy, "r+") as damaged:
        group = damaged["stem_bn"]
        del group[name]
        if kind == "external":
            group[name] = h5py.ExternalLink(str(file), other)
        elif kind == "soft":
            group[name] = h5py.SoftLink(other)
        elif kind == "raw":
            group.create_dataset(name, (32,), "f4", external=[(str(secret), 0, 128)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((32,), "f4")
            layout[:] = h5py.VirtualSource(str(file), other, (32,))
            group.create_virtual_dataset(name, layout)
        else:
            group.create_group(name)
    message = _refusal(copy)
    expected = "must be in the file" if kind in ("external", "soft") else "within the file"
    assert expected in message


def test_read_a_layer_that_is_a_link_is_refused(copy, file):
    with h5py.File(copy, "r+") as damaged:
        del damaged["stem_bn"]
        damaged["stem_bn"] = h5py.ExternalLink(str(file), "/stem_bn")
    assert "'stem_bn' must be in the file. Received: a link" in _refusal(copy)


def test_read_a_name_that_leads_through_a_link_is_refused(copy, file):
    with h5py.File(copy, "r+") as damaged:
        damaged["way"] = h5py.ExternalLink(str(file), "/")
        names = list(damaged.attrs["layer_names"])
        damaged.attrs["layer_names"] = [name.replace("stem_bn", "way/stem_bn") for name in names]
    assert "'way/stem_bn' must be in the file. Received: a link" in _refusal(copy)


def test_read_a_listed_weight_that_is_not_there_is_refused(copy):
    with h5py.File(copy, "r+") as damaged:
        del damaged["stem_bn/stem_bn/gamma:0"]
    assert "must be in the file. Received: a link, or nothing." in _refusal(copy)


def test_read_what_is_no_hdf5_is_refused(file, tmp_path):
    path = tmp_path / "weights.h5"
    path.write_bytes(b"no HDF5 at all")
    assert "must be a readable HDF5 file as Keras 2 writes it" in _refusal(path)
    path.write_bytes(file.read_bytes()[:100_000])
    assert "must be a readable HDF5 file as Keras 2 writes it" in _refusal(path)
    assert "must be a readable HDF5 file" in _refusal(tmp_path / "none.h5")


def test_read_the_format_of_keras_3_is_refused(tmp_path):
    with h5py.File(tmp_path / "k.weights.h5", "w") as file:
        file["layers/dense/vars/0"] = np.ones(3)
    assert "Received: a file without layer_names." in _refusal(tmp_path / "k.weights.h5")
