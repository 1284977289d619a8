"""Images of rows and uploads: whatever the bytes are, there is an RGB image or one line that names the row."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from mutations import damaged
from PIL import Image

from emu3.errors import UserError
from emu3.train_image_editing.image_rows import BadRow, Columns, read_row

COLUMNS = Columns("input", "instruction", "output", ("why",), "id", "task")
FORMATS = [
    ("PNG", "RGB"),
    ("PNG", "P"),
    ("PNG", "I;16"),
    ("PNG", "LA"),
    ("JPEG", "RGB"),
    ("JPEG", "CMYK"),
    ("GIF", "P"),
]
CELLS = (
    st.none() | st.text(max_size=4) | st.binary(max_size=8) | st.integers() | st.lists(st.text(max_size=3), max_size=2)
)


@cache
def encoded(form: str, mode: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200) if mode == "I;16" else image.convert(mode)
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


@given(st.data())
def test_a_row_is_read_or_bad(data: st.DataObject) -> None:
    """Guards: an exception of a decoder that ends a run at row 600,000, and an image in another mode than RGB."""
    cell = data.draw(damaged(encoded(*data.draw(st.sampled_from(FORMATS)))))
    values = {"input": {"bytes": cell, "path": None}, "instruction": "make it red", "output": None}
    row = dict.fromkeys(("why", "id", "task")) | values
    try:
        found = read_row(row, COLUMNS, 0)
    except BadRow as error:
        assert "\n" not in str(error)
    else:
        assert found.source.mode == "RGB"


@given(st.fixed_dictionaries(dict.fromkeys(("input", "instruction", "output", "why", "id", "task"), CELLS)))
def test_cells_of_any_kind_are_read_or_bad(row: dict[str, object]) -> None:
    try:
        read_row(row, COLUMNS, 0)
    except BadRow as error:
        assert "\n" not in str(error)
    except UserError:
        raise AssertionError("a row's own fault must not end the run") from None
