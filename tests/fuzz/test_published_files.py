"""Published training data: whatever is in a file, it is an edit or a `BadFile`, and nothing is run for it."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import broken_json, damaged, with_another_value

from emu3.errors import UserError
from emu3.train_image_editing.convert_published import Grids, open_published, read_edit
from emu3.train_image_editing.published_pickle import BadFile, read_pickle
from emu3.train_image_editing.shards import EditRow

GRIDS = Grids(codebook_size=16, factor=8, image_area=16 * 24)
RECORD: dict[str, Any] = {
    "edit_id": "7.pth",
    "original_image": np.arange(6).reshape(2, 3),
    "edited_image": np.arange(6).reshape(2, 3),
    "CoT": {"reasoning_verbose": "the ball is at [0, 0, 8, 8]"},
    "instruction": "make it red",
}
LIST = {"prefix": "/their/disk", "path_list": ["7.pth", "a/8.pth", "../9.pth", "/etc/passwd", "7.pth"]}


def saved(record: Any) -> bytes:
    file = io.BytesIO()
    torch.save(record, file)
    return file.getvalue()


def archived(pickled: bytes) -> bytes:
    """A pickle in the archive that torch.save makes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
    return file.getvalue()


WHOLE = saved(RECORD)
PICKLED = pickle.dumps(RECORD, protocol=2)
OPCODES = st.sampled_from([opcode.code.encode("latin1") for opcode in pickletools.opcodes])
PROGRAMS = st.lists(OPCODES | st.binary(max_size=4), max_size=30).map(b"".join)
PICKLES = (
    damaged(PICKLED) | damaged(pickle.dumps(RECORD, protocol=4)) | PROGRAMS.map(lambda code: b"\x80\x02" + code + b".")
)


@given(PICKLES)
def test_a_pickle_is_read_or_refused(data: bytes) -> None:
    """Guards: an exception of the machine's own, such as one for an empty stack."""
    try:
        read_pickle(data)
    except BadFile as error:
        assert "\n" not in str(error)


@given(damaged(WHOLE) | PICKLES.map(archived) | with_another_value(dict.fromkeys(RECORD, "a")).map(saved))
def test_a_file_is_an_edit_or_a_bad_file(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "7.pth").write_bytes(data)
        try:
            row = read_edit(Path(name), "7.pth", GRIDS)
        except BadFile as error:
            assert "\n" not in str(error)
        else:
            assert isinstance(row, EditRow) and row.source.dtype == np.uint16 and row.source.max() < 16
            json.dumps([row.id, row.instruction, dict(row.cot)], ensure_ascii=False).encode()


@given(
    st.text(max_size=40) | st.sampled_from(["..", ".", "", "/", "a/../../b", "\x00", "a" * 300, "\ud800", "l/7.pth"])
)
def test_no_name_leads_out(name: str) -> None:
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer) / "OUT"
        folder.mkdir()
        (folder / "l").symlink_to(outer)
        (Path(outer) / "7.pth").write_bytes(WHOLE)
        with pytest.raises(BadFile):
            read_edit(folder, name, GRIDS)


@given(broken_json(LIST))
def test_a_list_is_read_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "list" / "tokenized_datalist.json"
        path.parent.mkdir()
        path.write_bytes(data)
        try:
            edits = open_published(Path(name))
        except UserError as error:
            assert "\n" not in str(error)
        else:
            for file in edits.names:
                with pytest.raises(BadFile):
                    read_edit(Path(name), file, GRIDS)
