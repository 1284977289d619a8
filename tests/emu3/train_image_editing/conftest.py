"""The small world, made once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sft_world

from emu3.train_image_editing.prepare_data import PrepareArguments, prepare
from emu3.train_image_editing.shards import read_rows


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sft_world.model_folder(tmp_path_factory.mktemp("language_model"))


@pytest.fixture(scope="session")
def train_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sft_world.data(tmp_path_factory.mktemp("data") / "train", sft_world.edits(24))


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision")
    sft_world.save_vision(folder)
    return folder


@pytest.fixture
def tokenize(vision: Path, tmp_path: Path) -> Callable[..., tuple[list[str], dict[str, str]]]:
    """The instructions of the rows that were tokenized, and the reasons of the others by their ids."""

    def run(data: Path, **flags: Any) -> tuple[list[str], dict[str, str]]:
        arguments = PrepareArguments(
            dataset_name=str(data), source="local", output_path=str(tmp_path / "shards"), model_path=str(vision),
            original_image_key="input", edited_image_key="output", image_area=256, **flags,
        )  # fmt: skip
        manifest = prepare(arguments)
        assert manifest is not None
        kept = [row.instruction for row in read_rows(tmp_path / "shards")]
        return kept, {row["id"]: row["why"] for row in manifest["failed"]}

    return run
