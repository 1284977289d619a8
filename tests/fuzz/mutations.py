"""What goes wrong with files: bytes that are changed, lost or there twice, and JSON in which something is something
else."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

SOME_NUMBERS = st.sampled_from([0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 1e300, 0.5, -0.0])
LEAVES = st.none() | st.booleans() | SOME_NUMBERS | st.text(max_size=8) | st.just("\ud800") | st.just(float("nan"))
ANY_JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
MANY_BRACKETS = "[" * 5_000
_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["set", "flip", "delete", "insert", "repeat", "cut"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
        st.sampled_from([1, 2, 4, 8, 64, 1000]),
    ),
    min_size=1,
    max_size=6,
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """`whole` after a few accidents; a place is a share of its length."""
    data = bytearray(whole)
    for what, place, value, length in draw(_STEPS):
        start = int(place * len(data))
        match what:
            case "set":
                data[start : start + 1] = bytes([value])
            case "flip" if data:
                data[start] ^= 1 << value % 8
            case "delete":
                del data[start : start + length]
            case "insert":
                data[start:start] = bytes([value]) * length
            case "repeat":
                data[start:start] = data[start : start + length]
            case "cut":
                del data[start:]
    return bytes(data)


@st.composite
def with_another_value(draw: st.DrawFn, tree: Any) -> Any:
    """A copy of a JSON tree in which up to three values, anywhere, are others, are gone, or are in the wrong place."""
    changed = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(changed))
        if not places:
            return draw(ANY_JSON)
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        if draw(st.integers(0, 4)) == 0:
            del holder[key]
        elif draw(st.integers(0, 4)) == 0:
            other, name = places[draw(st.integers(0, len(places) - 1))]
            holder[key] = copy.deepcopy(other[name]) if _has(other, name) else None
        else:
            holder[key] = draw(ANY_JSON)
    return changed


def broken_json(tree: Any) -> st.SearchStrategy[bytes]:
    """The bytes of a JSON file: another tree, damaged text, or brackets without an end."""
    text = json.dumps(tree).encode()
    return (
        with_another_value(tree).map(lambda other: json.dumps(other).encode())
        | damaged(text)
        | st.just(MANY_BRACKETS.encode())
    )


def _places(tree: Any) -> Any:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from _places(value)


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)
