"""A pickle is a program; the reader of published data must run none of it, nor let it fill the memory."""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import os
import pickle
import random
import struct
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_files import pickled_by_torch, record, saved

from emu3.train_image_editing.published_pickle import BadFile, read_pickle

DTYPES = ["<i8", ">i8", "<i4", ">i2", "|i1", "|u1", "<u2", "<u4", "<u8", "|b1", "<f2", "<f4", ">f8"]


class Call:
    """Pickles as a call of `function`, as an attacker writes it."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def assert_equal(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_equal(found[key], value)
    else:
        assert found == expected


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_values_are_those_that_pickle_reads(protocol: int) -> None:
    values = {
        "record": record(1),
        "numbers": [0, 1, -1, 255, 256, 65_536, -(2**31), 2**62, 2**200, 1.5, float("inf"), True, False, None],
        "texts": ["", "a", "Größe 漢字 🎨", "x" * 300, b"bytes\xff", b""],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "again": ["shared"] * 2,
        "arrays": {dtype: np.arange(6).reshape(2, 3).astype(dtype) for dtype in DTYPES},
        "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "many": {str(index): index for index in range(300)},
    }
    data = pickle.dumps(values, protocol)
    assert_equal(read_pickle(data), pickle.loads(data))


def test_what_torch_saves_is_read_as_torch_reads_it() -> None:
    data = saved(record(3))
    assert_equal(read_pickle(pickled_by_torch(record(3))), torch.load(io.BytesIO(data), weights_only=False))


def test_names_of_numpy_1_are_known() -> None:
    """The published files were written before `numpy.core` was renamed."""
    data = pickled_by_torch(record(3))
    assert b"numpy._core.multiarray" in data
    assert_equal(read_pickle(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")), record(3))


def test_numpy_scalars_become_numbers() -> None:
    value = {"a": np.float64(1.5), "b": np.int16(-3), "c": np.bool_(True)}
    assert_equal(read_pickle(pickle.dumps(value, 2)), {"a": 1.5, "b": -3, "c": True})


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Call(os.system, "touch {canary}"), "posix.system"),
        (Call(eval, "open('{canary}', 'w')"), "eval"),
        (Call(exec, "open('{canary}', 'w')"), "exec"),
        (Call(getattr, "x", "join"), "getattr"),
        (Call(__import__, "os"), "__import__"),
        (Call(functools.partial, os.system, "touch {canary}"), "functools.partial"),
        (Call(functools.reduce, getattr, ["{canary}"], ""), r"\.reduce"),
        (Call(np.load, "{canary}"), "numpy.load"),
        (Call(np.memmap, "{canary}", "uint8", "w+", 0, 10), "numpy.memmap"),
        (Call(np.fromfile, "{canary}"), "numpy.fromfile"),
        (Call(open, "{canary}", "w"), "open"),
        (Call(collections.OrderedDict), "collections.OrderedDict"),
        (Path("{canary}"), "pathlib.PosixPath"),
        (np.array([Call(os.system, "touch {canary}")], object), "the dtype O8"),
        (np.array([(1, 2)], [("a", "i4"), ("b", "i4")]), "the dtype V8"),
        (np.array(["text"]), "the dtype U4"),
        (np.dtype("M8[s]"), "the dtype M8"),
        (1j, "complex"),
        ({1: 2}, "a dict whose keys are no texts"),
    ],
)
def test_anything_else_is_refused_by_name(tmp_path: Path, value: Any, name: str, protocol: int) -> None:
    canary = tmp_path / "canary"
    place = str(canary)
    if isinstance(value, Call):
        function, arguments = value.reduced
        filled = [part.format(canary=place) if isinstance(part, str) else part for part in arguments]
        value = Call(function, *filled)
    data = pickle.dumps({"instruction": value} if not isinstance(value, dict) else value, protocol)
    with pytest.raises(BadFile, match=rf"refused .*{name}.*: only numbers") as error:
        read_pickle(data)
    assert not canary.exists()
    assert "\n" not in str(error.value)


def test_no_module_is_imported() -> None:
    """Looking a name up is enough to run a module's top level."""
    assert "antigravity" not in sys.modules
    with pytest.raises(BadFile, match=r"refused antigravity\.geohash"):
        read_pickle(b"\x80\x02cantigravity\ngeohash\n.")
    assert "antigravity" not in sys.modules


PUSH_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n"
ARRAY_TYPE = b"cnumpy\nndarray\n"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


DTYPE = b"cnumpy\ndtype\n" + text("i8") + b"\x89\x88\x87R"
EMPTY = PUSH_ARRAY + ARRAY_TYPE + b"K\x00\x85" + text("b") + b"\x87R"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        # Names with a dot reach attributes of attributes in the real unpickler.
        (b"\x80\x04" + text("numpy") + text("ndarray.__class__") + b"\x93.", r"refused numpy\.ndarray\.__class__"),
        (b"\x80\x02cnumpy.core.multiarray._reconstruct\n__globals__\n.", "refused numpy.core.multiarray._reconstruct"),
        # BUILD sets attributes of whatever is there, also of functions and types.
        (b"\x80\x02" + PUSH_ARRAY + b"}" + text("__defaults__") + text("x") + b"sb.", "refused a state for a _Name"),
        (b"\x80\x02" + ARRAY_TYPE + b"}b.", "refused a state for a _Name"),
        (b"\x80\x02}}b.", "refused a state for a dict"),
        (b"\x80\x02" + text("x") + b")R.", "refused a call of a str"),
        (b"\x80\x02" + ARRAY_TYPE + b")R.", "not made like this"),
        (b"\x80\x02" + PUSH_ARRAY + text("int") + b"K\x00\x85" + text("b") + b"\x87R.", "not made like this"),
        (b"\x80\x02c_codecs\nencode\n" + text("a") + text("rot13") + b"\x86R.", "not made like this"),
        (b"\x80\x02(ios\nsystem\n.", "refused the instruction INST"),
        (b"\x80\x02\x82\x01.", "refused the instruction EXT1"),
        (b"\x80\x02" + ARRAY_TYPE + b")\x81.", "refused the instruction NEWOBJ"),
        (b"\x80\x02" + text("0") + b"Q.", "refused the instruction BINPERSID"),
        # Escape sequences of a terminal.
        (b"\x80\x04" + text("a\x1b[2J\nb") + text("c") + b"\x93.", r"refused a\\x1b\[2J\\nb\.c"),
    ],
)
def test_hand_written_programs_are_refused(program: bytes, message: str) -> None:
    with pytest.raises(BadFile, match=message):
        read_pickle(program)


def array_of(shape: bytes, data: bytes) -> bytes:
    return b"\x80\x02" + EMPTY + b"(K\x01" + shape + DTYPE + b"\x89" + data + b"tb."


BYTES_OF_8 = b"c_codecs\nencode\n" + text("\x01" + "\x00" * 7) + text("latin1") + b"\x86R"


@pytest.mark.parametrize(
    ("shape", "right"),
    [
        (b"K\x01K\x01\x86", True),
        (number(2**40) + b"K\x01\x86", False),
        (number(2**62) + number(4) + b"\x86", False),
        (number(-1) + number(-1) + b"\x86", False),
        (number(2**62) + b"K\x00\x86", False),
        (b"K\x02K\x01\x86", False),
        (text("1") + b"K\x01\x86", False),
        (b"\x88\x88\x86", False),
        (b"(" + b"K\x01" * 65 + b"t", False),
        (b"K\x01", False),
    ],
)
def test_a_shape_that_the_bytes_do_not_fill_allocates_nothing(shape: bytes, right: bool) -> None:
    """np.empty((2**40, 1)) succeeds on a machine that promises more memory than it has."""
    program = array_of(shape, BYTES_OF_8)
    if right:
        np.testing.assert_array_equal(read_pickle(program), [[1]])
        return
    tracemalloc.start()
    with pytest.raises(BadFile):
        read_pickle(program)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_huge_shape_of_the_empty_array_is_not_looked_at() -> None:
    """NumPy's own `_reconstruct` allocates it."""
    program = b"\x80\x02" + PUSH_ARRAY + ARRAY_TYPE + number(2**50) + b"\x85" + text("b") + b"\x87R."
    assert read_pickle(program).size == 0


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02r\xff\xff\xff\xff.",  # a place in the memo that a list would have to reach
        b"\x80\x02]r\xff\xff\xff\x7f.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",  # a byte array of a terabyte
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".",
        b"\x80\x02X" + struct.pack("<I", 2**31) + b"short.",
        b"\x80\x02\x8b" + struct.pack("<i", 2**30) + b".",
    ],
)
def test_sizes_that_the_file_only_claims_allocate_nothing(program: bytes) -> None:
    tracemalloc.start()
    with contextlib.suppress(BadFile):
        read_pickle(program)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_the_same_bytes_made_again_and_again_are_refused() -> None:
    """A few bytes of program per copy of a long text: 100 kB of file would become 1 GB."""
    program = (
        b"\x80\x02c_codecs\nencode\nq\x00" + text("\x00" * 50_000) + b"q\x01" + text("latin1") + b"\x86q\x02R\x85]"
    )
    program += b"(" + b"h\x00h\x02R" * 10_000 + b"e\x86."
    with pytest.raises(BadFile, match="more data than the file has"):
        read_pickle(program)


def test_nested_tuples_as_a_name_are_not_printed() -> None:
    """The text of a tuple of twice the same tuple of ... 60 deep has 2**60 brackets."""
    program = b"\x80\x04)" + b"q\x00h\x00\x86" * 60 + b"K\x01\x93."
    with pytest.raises(BadFile, match="a name is no text"):
        read_pickle(program)


def test_nested_tuples_as_keys_are_not_hashed() -> None:
    """The hash of a tuple of twice the same tuple of ... 60 deep takes 2**60 steps."""
    program = b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"Ns."
    with pytest.raises(BadFile, match="keys are no texts"):
        read_pickle(program)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # pickletools', in texts of protocol 0
def test_damaged_pickles_are_bad_files() -> None:
    """Never another exception, never a wait: a converter of a million files must survive each of them."""
    whole = pickled_by_torch(record(1, note=np.float32(2), more=[1, (2, b"x"), None]))
    draw = random.Random(0)
    bad = 0
    for _ in range(3_000):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            read_pickle(bytes(damaged[: draw.randint(1, len(damaged))] if draw.random() < 0.3 else damaged))
        except BadFile:
            bad += 1
    assert bad > 1_000


def test_tensors_are_refused_by_name() -> None:
    with zipfile.ZipFile(io.BytesIO(saved(torch.zeros(2, dtype=torch.long)))) as archive:
        data = archive.read("archive/data.pkl")
    with pytest.raises(BadFile, match=r"torch\._utils\._rebuild_tensor_v2"):
        read_pickle(data)
