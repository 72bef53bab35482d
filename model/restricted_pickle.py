"""Reading pickles of plain data without running what a pickle may ask for.

A pickle is a program that may call whatever it names. Here it finds nothing to call but
the few stand-ins of this module, which build plain values and check what they are given:

| in the pickle | what becomes of it |
|---|---|
| None, bool, int of 64 bits, float, str, bytes | itself |
| dict, list, tuple, set, frozenset, OrderedDict | itself, of such values; OrderedDict as dict |
| NumPy scalar, dtype or array of bools, numbers or text | itself |
| an array of objects or of records, and every other name | the file is refused |

Opcodes are checked before the first one runs: those that numbers, text, containers and
NumPy need, not more than `_MAX_OPCODES`, no length beyond the end of the file. So what a
file can take is bounded in memory; time it could still waste, as keys of nested tuples.
"""

import collections
import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable

import numpy as np

from schemas.errors import InputError

MAX_BYTES = 1 << 20
"""Fifteen thresholds take half a kilobyte."""

_MAX_OPCODES = 10_000
"""Each adds at most one level of nesting, which the interpreter's stack has to bear."""

_OPCODE_NAMES = (
    "PROTO FRAME STOP MARK GLOBAL STACK_GLOBAL REDUCE BUILD NEWOBJ "
    "GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE "
    "NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "
    "UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 "
    "SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 "
    "EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "EMPTY_DICT DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET "
)
_OPCODES = frozenset(_OPCODE_NAMES.split())
"""Not one that fetches what the process holds. NEWOBJ wants a class and never gets one here:
it is among them so that the error can say which."""

_MAX_DEPTH = 20
_PLAIN_DTYPE = re.compile(r"(?:b1|[iuf]\d{1,2}|[US]\d{1,6})")
_BYTE_ORDERS = ("<", ">", "|", "=")

# What a damaged or crafted pickle makes the unpickler and NumPy raise.
_MALFORMED = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


def load_plain_pickle(path: str) -> object:
    """Returns the value of a pickle file, which the module's table says can be plain only.

    Args:
      path: A local file; nothing it names is imported, and nothing of it is executed.

    Raises:
      InputError: The file cannot be read, is too large, is no pickle, or holds or names
        anything else than plain values.
    """
    data = _read(path)
    try:
        _check_opcodes(data)
        return _Settler().settle(_PlainUnpickler(io.BytesIO(data)).load())
    except _MALFORMED as error:
        reason = f"{error}".splitlines()[0][:200] if f"{error}" else type(error).__name__
        remedy = _remedy(reason)
        raise InputError(
            f"{path} must be a pickle of plain containers, numbers, text and NumPy arrays."
            f" Received: {reason}. Nothing of it was executed.{remedy}"
        ) from error


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} must be a readable file. Received: {error.strerror}.") from error
    if len(data) > MAX_BYTES:
        raise InputError(
            f"{path} must be a pickle of at most {MAX_BYTES} bytes. Received: more than that."
        )
    return data


def _remedy(reason: str) -> str:
    if "sklearn" not in reason:
        return ""
    return (
        " Where it was written, pickle plain data in its place:"
        " {str(name): index for index, name in enumerate(encoder.classes_)}."
    )


def _check_opcodes(data: bytes) -> None:
    """Raises where an opcode is not a needed one, or would take memory for nothing."""
    for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if number >= _MAX_OPCODES:
            raise pickle.UnpicklingError(f"more than {_MAX_OPCODES} opcodes")
        if opcode.name not in _OPCODES:
            raise pickle.UnpicklingError(f"the opcode {opcode.name}")
        # The unpickler makes room for every place up to the one named.
        if opcode.name.endswith("PUT") and argument > _MAX_OPCODES:
            raise pickle.UnpicklingError(f"the opcode {opcode.name} {argument}")


class _StandIn:
    """What a pickle gets for a name: callable at most, and without state to set."""

    __slots__ = ("_build", "name")

    def __init__(self, name: str, build: Callable | None):
        self.name = name
        self._build = build

    def __call__(self, *arguments):
        if self._build is None:
            raise pickle.UnpicklingError(f"a call of {self.name}")
        return self._build(*arguments)

    def __setstate__(self, state: object):
        raise pickle.UnpicklingError(f"a change of {self.name}")


class _Dtype:
    """A dtype as NumPy pickles it: a code, then a state that adds the byte order."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: str, align: object = False, copy: object = True):
        if not isinstance(code, str) or not _PLAIN_DTYPE.fullmatch(code):
            raise pickle.UnpicklingError(f"an array or scalar of dtype {code!r:.40}")
        self._code, self._order = code, "="

    def __setstate__(self, state: tuple):
        order, *parts = state[1:5]
        if order not in _BYTE_ORDERS or any(part is not None for part in parts):
            raise pickle.UnpicklingError("an array or scalar of records")
        self._order = order

    def resolve(self) -> np.dtype:
        return np.dtype(self._order + self._code)


class _PendingArray:
    """An array whose content is still to come, as NumPy pickles one before protocol 5."""

    __slots__ = ("array",)

    def __init__(self):
        self.array = np.empty(0)

    def __setstate__(self, state: tuple):
        _, shape, dtype, fortran, raw = state
        self.array = _array(raw, dtype, shape, "F" if fortran else "C").array


def _array(raw: bytes, dtype: _Dtype, shape: tuple, order: str) -> _PendingArray:
    """Returns an array of `raw`, which must be as long as dtype and shape say."""
    if not isinstance(raw, bytes | bytearray) or not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError("an array without bytes or dtype")
    if any(type(side) is not int or side < 0 for side in shape):
        raise pickle.UnpicklingError("an array with another shape than NumPy's")
    if math.prod(shape) * dtype.resolve().itemsize != len(raw):
        raise pickle.UnpicklingError("an array with another length than its shape")
    pending = _PendingArray()
    pending.array = np.frombuffer(bytes(raw), dtype.resolve()).reshape(shape, order=order)
    return pending


def _scalar(dtype: _Dtype, raw: bytes) -> np.generic:
    return _array(raw, dtype, (1,), "C").array[0]


def _reconstruct(kind: object, shape: object, code: object) -> _PendingArray:
    """Returns an empty array; its state, which follows, says all about it."""
    return _PendingArray()


def _encode(text: str, encoding: str) -> bytes:
    """Returns the bytes that protocols below 3 write as text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text encoded as {encoding!r:.40}")
    return text.encode("latin1")


_NAMES: dict[tuple[str, str], Callable | None] = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "set"): set,
    ("__builtin__", "frozenset"): frozenset,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _Dtype,
    # An argument of `_reconstruct`, never called: it could be asked for any size.
    ("numpy", "ndarray"): None,
    # The module's name before and since NumPy 2.
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _array,
    ("numpy._core.numeric", "_frombuffer"): _array,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> _StandIn:
        """Returns the stand-in of a name; imports nothing, so that nothing can be run."""
        full = f"{module}.{name}"
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"the name {ascii(full):.100}")
        return _StandIn(full, _NAMES[module, name])


class _Settler:
    """Turns what was unpickled into plain values, each visited and checked."""

    def __init__(self):
        self._visited = 0

    def settle(self, value: object, depth: int = 0) -> object:
        """Returns `value` without stand-ins.

        Raises:
          pickle.UnpicklingError: It is not plain, too deep, or a few bytes that repeat
            each other into more than a pickle of this size holds.
        """
        self._visited += 1
        if depth > _MAX_DEPTH or self._visited > _MAX_OPCODES:
            raise pickle.UnpicklingError("containers too deep, or within themselves")
        if isinstance(value, dict):
            # By the type's own method: a pickle can give an OrderedDict another one.
            items = dict.items(value)
            return {self.settle(k, depth + 1): self.settle(v, depth + 1) for k, v in items}
        if type(value) in (list, tuple, set, frozenset):
            return type(value)(self.settle(item, depth + 1) for item in value)
        return _settle_leaf(value)


def _settle_leaf(value: object) -> object:
    if isinstance(value, _PendingArray):
        return value.array
    if isinstance(value, _Dtype):
        return value.resolve()
    if type(value) is int and value.bit_length() > 64:
        raise pickle.UnpicklingError("an int of more than 64 bits")
    if value is None or type(value) in (bool, int, float, str, bytes, bytearray):
        return value
    if isinstance(value, np.generic):
        return value
    if isinstance(value, _StandIn):
        raise pickle.UnpicklingError(f"the name {value.name} as a value")
    raise pickle.UnpicklingError(f"a value of type {type(value).__name__}")
