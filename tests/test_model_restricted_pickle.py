"""What a pickle may hold, and that nothing it asks for is done."""

import collections
import operator
import os
import pickle
import re
import struct
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.restricted_pickle import MAX_BYTES, load_plain_pickle
from schemas.errors import InputError
from tests.seed_files import write_pickle

_PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

_LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text() | st.binary()
_LEAVES |= st.floats(allow_nan=False)
_PLAIN = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(-9, 9), inner, max_size=4)
        | st.frozensets(_LEAVES, max_size=4)
    ),
    max_leaves=10,
)


class _Call:
    """Pickles to a call of `function`, which a plain `pickle.load` would make."""

    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


def _refusal(path) -> str:
    with pytest.raises(InputError) as caught:
        load_plain_pickle(str(path))
    message = str(caught.value)
    assert "\n" not in message
    return message


@given(value=_PLAIN, protocol=st.sampled_from([3, 4, 5]))
def test_load_plain_values_any_are_returned_equal(tmp_path_factory, value, protocol):
    path = write_pickle(tmp_path_factory.getbasetemp() / "plain.pkl", value, protocol)
    loaded = load_plain_pickle(str(path))
    assert loaded == value
    assert type(loaded) is type(value)


@pytest.mark.parametrize("protocol", _PROTOCOLS)
def test_load_numpy_values_any_protocol_are_returned_equal(tmp_path, protocol):
    value = {
        "scalar": np.float32(0.233),
        "index": np.int64(7),
        "yes": np.bool_(True),
        "text": np.str_("Edema"),
        "array": np.arange(6, dtype=">f8").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        "names": np.array(["Mass", "Hernia"]),
        "dtype": np.dtype("<f4"),
    }
    loaded = load_plain_pickle(str(write_pickle(tmp_path / "numpy.pkl", value, protocol)))
    assert list(loaded) == list(value)
    for name, expected in value.items():
        assert type(loaded[name]) is type(expected), name
        assert loaded[name] == expected if name == "dtype" else True
        np.testing.assert_array_equal(loaded[name], expected)
        assert getattr(loaded[name], "dtype", None) == getattr(expected, "dtype", None)


def test_load_names_of_numpy_1_and_2_give_the_same(tmp_path):
    data = pickle.dumps({"Edema": np.float64(0.25), "all": np.arange(3)}, protocol=0)
    old, new = tmp_path / "old.pkl", tmp_path / "new.pkl"
    old.write_bytes(data.replace(b"numpy._core", b"numpy.core"))
    new.write_bytes(data.replace(b"numpy.core", b"numpy._core"))
    assert old.read_bytes() != new.read_bytes()
    for path in (old, new):
        loaded = load_plain_pickle(str(path))
        assert loaded["Edema"] == 0.25
        assert loaded["all"].tolist() == [0, 1, 2]


def test_load_ordered_dict_becomes_a_dict_in_order(tmp_path):
    value = collections.OrderedDict([("b", 1), ("a", 2)])
    loaded = load_plain_pickle(str(write_pickle(tmp_path / "o.pkl", value)))
    assert type(loaded) is dict
    assert list(loaded.items()) == [("b", 1), ("a", 2)]


def _hostile_calls(canary: str) -> list[_Call]:
    return [
        _Call(os.system, f"touch {canary}"),
        _Call(eval, f"open({canary!r}, 'w')"),
        _Call(exec, f"open({canary!r}, 'w')"),
        _Call(open, canary, "w"),
        _Call(subprocess.check_call, ["touch", canary]),
        _Call(np.save, canary, 1),
        _Call(np.testing.assert_equal, 1, 1),
        _Call(operator.attrgetter, "__class__"),
        _Call(getattr, {}, "pop"),
    ]


@pytest.mark.parametrize("protocol", _PROTOCOLS)
@pytest.mark.parametrize("number", range(9))
def test_load_call_of_any_function_is_refused_and_not_made(tmp_path, number, protocol):
    call = _hostile_calls(str(tmp_path / "canary.npy"))[number]
    path = write_pickle(tmp_path / "hostile.pkl", {"Edema": call}, protocol)
    message = _refusal(path)
    assert "must be a pickle of plain containers, numbers, text and NumPy arrays" in message
    # The module's name depends on the protocol.
    name = call.__reduce__()[0].__name__
    assert re.search(rf"Received: the name '[\w.]+\.{name}'", message)
    assert "Nothing of it was executed" in message
    assert sorted(tmp_path.iterdir()) == [path]


def _stack_global(module: str, name: str, argument: str) -> bytes:
    """A protocol-4 pickle that calls what `module` and `name` lead to."""
    texts = b"".join(
        b"\x8c" + struct.pack("B", len(text)) + text.encode() for text in (module, name)
    )
    text = argument.encode()
    return b"\x80\x04" + texts + b"\x93\x8c" + struct.pack("B", len(text)) + text + b"\x85R."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy", "core.multiarray.scalar.__class__"),
        ("numpy", "f2py.os.system"),
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy._core.multiarray", "os.system"),
        ("numpy.lib.npyio", "load"),
        ("builtins", "set.__class__"),
        ("collections", "OrderedDict.__init__.__class__"),
        ("posix\nsystem", "x"),
    ],
)
def test_load_dotted_or_unlisted_name_is_refused(tmp_path, module, name):
    canary = tmp_path / "canary"
    path = tmp_path / "hostile.pkl"
    path.write_bytes(_stack_global(module, name, f"touch {canary}"))
    assert "Received: the name '" in _refusal(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (pickle.dumps(np.array([{}], object)), "an array or scalar of dtype 'O8'"),
        (pickle.dumps(np.zeros(2, "i4,f4")), "an array or scalar of dtype 'V8'"),
        (pickle.dumps(np.ndarray), "the name numpy.ndarray as a value"),
        (pickle.dumps(_Call(np.ndarray, (1 << 40,))), "a call of numpy.ndarray"),
        (pickle.dumps(_Call(set, 7)), "'int' object is not iterable"),
        (pickle.dumps(1 << 70), "an int of more than 64 bits"),
        (pickle.dumps(1j), "the name 'builtins.complex'"),
        (pickle.dumps(list(range(20_000))), "more than 10000 opcodes"),
        # An extension registered by any library would be fetched without its name.
        (b"\x80\x02\x82\x01.", "the opcode EXT1"),
        (b"\x80\x04Pnumber\n.", "the opcode PERSID"),
        # Room for two thousand million places of the memo.
        (b"\x80\x04Nr\xff\xff\xff\x7f.", "the opcode LONG_BINPUT 2147483647"),
        # A terabyte, were it believed.
        (b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00.", "expected 1099511627776 bytes"),
        (b"\x80\x04" + b"]" * 50 + b"a" * 49 + b".", "containers too deep"),
        (b"\x80\x04]\x94h\x00a.", "containers too deep, or within themselves"),
        (b"\x80\x04K\x01", "pickle exhausted before seeing STOP"),
        (b"", "pickle exhausted before seeing STOP"),
        (b"\xff\xd8\xff", "unknown"),
        (b"\x80\x04cnumpy\ndtype\n}b.", "a change of numpy.dtype"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_load_what_is_not_plain_is_refused_by_name(tmp_path, data, reason):
    path = tmp_path / "other.pkl"
    path.write_bytes(data)
    assert reason in _refusal(path)


def test_load_repeated_references_are_not_multiplied(tmp_path):
    value = "x"
    for _ in range(30):
        value = [value, value]
    assert "containers too deep" in _refusal(write_pickle(tmp_path / "bomb.pkl", value))
    value = "x"
    for _ in range(15):
        value = [value, value]
    assert "containers too deep" in _refusal(write_pickle(tmp_path / "bomb.pkl", value))


def test_load_array_of_another_length_than_its_shape_is_refused(tmp_path):
    data = pickle.dumps(np.arange(300, dtype=np.int64), protocol=3)
    shape = b"M" + struct.pack("<H", 300)
    assert data.count(shape) == 1
    path = tmp_path / "long.pkl"
    path.write_bytes(data.replace(shape, b"M" + struct.pack("<H", 60_000)))
    assert "an array with another length than its shape" in _refusal(path)


def test_load_sklearn_encoder_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "label_encoder.pkl"
    path.write_bytes(b"\x80\x02csklearn.preprocessing._label\nLabelEncoder\n)\x81}b.")
    message = _refusal(path)
    assert "the name 'sklearn.preprocessing._label.LabelEncoder'" in message
    assert "{str(name): index for index, name in enumerate(encoder.classes_)}" in message


def test_load_large_file_is_refused_unread(tmp_path):
    path = write_pickle(tmp_path / "large.pkl", bytes(MAX_BYTES))
    assert f"at most {MAX_BYTES} bytes" in _refusal(path)


def test_load_missing_file_is_refused(tmp_path):
    assert "must be a readable file. Received: No such file" in _refusal(tmp_path / "none.pkl")
