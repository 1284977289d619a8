"""Pickles of numbers, texts and NumPy arrays, read without the module `pickle`.

The published training data are pickles, and a pickle is a program: `pickle` looks up any name in it and calls it.
`torch.load(weights_only=True)` calls listed names only, but NumPy's have to be among them then, and they allocate
whatever shape a file asks for. Here the instructions, as the standard library's `pickletools` takes them apart, are
carried out on a stack of our own. A name is a word to be compared with eight others: no module is imported, no
attribute read, nothing of the file's choice called. All else is refused by name. What a file can make this reader
allocate is bounded by the file's own size.

Left out: tensors (the published files hold arrays), and instructions that Python needs only for other types.
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

MAX_DIMENSIONS = 8
NUMBERS = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})


class BadFile(Exception):
    """A file that cannot be used. The message says why."""


class _Name(Enum):
    """What a known name stands for. On the stack it is this, no string, so that it cannot pass for a text."""

    EMPTY_ARRAY = "an array"
    ARRAY_TYPE = "the type of an array"
    DTYPE = "a dtype"
    SCALAR = "a NumPy scalar"
    BYTES = "bytes"


NAMES = {
    "numpy.core.multiarray._reconstruct": _Name.EMPTY_ARRAY,  # as NumPy 1 calls it
    "numpy._core.multiarray._reconstruct": _Name.EMPTY_ARRAY,
    "numpy.core.multiarray.scalar": _Name.SCALAR,
    "numpy._core.multiarray.scalar": _Name.SCALAR,
    "numpy.ndarray": _Name.ARRAY_TYPE,
    "numpy.dtype": _Name.DTYPE,
    "_codecs.encode": _Name.BYTES,  # protocol 2, which torch.save writes, has bytes as text
    "__builtin__.bytes": _Name.BYTES,  # and no bytes like this
}


@dataclass
class _Dtype:
    code: str
    order: str = "="

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


def read_pickle(data: bytes) -> Any:
    """The value in a pickle of protocol 2 to 4: None, numbers, texts, bytes, lists, tuples, dicts with texts as keys,
    and NumPy arrays and scalars (as Python numbers) of numbers.

    Raises BadFile for anything else, naming it, and for data that are damaged.
    """
    try:
        return _Machine(data).run()
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise BadFile(f"damaged pickle: {error}") from None


class _Machine:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        # An array's bytes are made twice, from text and as numbers. A file that has the same ones made again and again
        # would fill the memory.
        self._allowance = 2 * len(data)

    def run(self) -> Any:
        stack, memo = self._stack, self._memo
        argument: Any
        for instruction, argument, _ in pickletools.genops(self._data):
            match instruction.name:
                case "PROTO" | "FRAME":
                    pass
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                    stack.append(argument)
                case "BINUNICODE" | "SHORT_BINUNICODE" | "BINBYTES" | "SHORT_BINBYTES":
                    stack.append(argument)
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(instruction.name == "NEWTRUE")
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "MARK":
                    self._marks.append(len(stack))
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(self._pop(int(instruction.name[-1]))))
                case "TUPLE":
                    stack.append(tuple(self._pop_to_mark()))
                case "APPEND":
                    self._append(self._pop(1))
                case "APPENDS":
                    self._append(self._pop_to_mark())
                case "SETITEM":
                    self._set_items(self._pop(2))
                case "SETITEMS":
                    self._set_items(self._pop_to_mark())
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "GLOBAL":
                    stack.append(_named(*argument.split(" ", 1)))
                case "STACK_GLOBAL":
                    stack.append(_named(*self._pop(2)))
                case "REDUCE":
                    stack.append(self._call(*self._pop(2)))
                case "BUILD":
                    [state] = self._pop(1)
                    self._build(stack[-1], state)
                case "STOP":
                    [value] = stack
                    return value
                case other:
                    raise _refusal(f"the instruction {other}")
        raise ValueError("no end")

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise ValueError("the stack is empty")
        values = self._stack[-count:]
        del self._stack[-count:]
        return values

    def _pop_to_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _append(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise ValueError("an item for what is no list")
        self._stack[-1].extend(values)

    def _set_items(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], dict):
            raise ValueError("a key for what is no dict")
        keys = values[::2]
        # Tuples of tuples of tuples as a key would take for ever to hash.
        if not all(isinstance(key, str) for key in keys):
            raise _refusal("a dict whose keys are no texts")
        self._stack[-1].update(zip(keys, values[1::2], strict=True))

    def _call(self, name: Any, arguments: Any) -> Any:
        match name, arguments:
            case _Name.EMPTY_ARRAY, (_Name.ARRAY_TYPE, _, _):
                return np.empty(0, np.int8)
            case _Name.DTYPE, (str() as code, *_):
                if code not in NUMBERS:
                    raise _refusal(f"the dtype {code}")
                return _Dtype(code)
            case _Name.SCALAR, (_Dtype() as dtype, bytes() as data):
                [value] = np.frombuffer(data, dtype.numpy())
                return value.item()
            case _Name.BYTES, (str() as text, "latin1"):
                return self._made(text.encode("latin1"))
            case _Name.BYTES, ():
                return b""
            case _Name(), _:
                raise ValueError(f"{name.value} is not made like this")
        raise _refusal(f"a call of a {type(name).__name__}")

    def _build(self, target: Any, state: Any) -> None:
        match target, state:
            case _Dtype(), (3, "<" | ">" | "|" | "=" as order, None, None, None, *_):
                target.order = order
            case np.ndarray(), (1, tuple() as shape, _Dtype() as dtype, bool() as by_columns, bytes() as data):
                if len(shape) > MAX_DIMENSIONS or not all(type(side) is int and side > 0 for side in shape):
                    raise ValueError("the shape of an array is not a few positive numbers")
                kind = dtype.numpy()
                if math.prod(shape) * kind.itemsize != len(data):
                    raise ValueError(f"an array of shape {shape} has {len(data)} bytes")
                # NumPy copies the bytes; the shape has just been found to be theirs.
                setstate: Any = target.__setstate__
                setstate((1, shape, kind, by_columns, self._made(data)))
            case _:
                raise _refusal(f"a state for a {type(target).__name__}")

    def _made(self, data: bytes) -> bytes:
        self._allowance -= len(data)
        if self._allowance < 0:
            raise _refusal("more data than the file has")
        return data


def _named(module: Any, name: Any) -> _Name:
    # Anything else is not printed either: tuples of twice the same tuple, 60 deep, make a text of 2**60 brackets.
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("a name is no text")
    known = NAMES.get(f"{module}.{name}")
    if known is None:
        raise _refusal(f"{module}.{name}")
    return known


def _refusal(what: str) -> BadFile:
    # Escaped: what a file holds ends up on a terminal.
    return BadFile(f"refused {ascii(what)[1:-1][:200]}: only numbers, texts and NumPy arrays are read")
