"""The small world, made once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import sft_world


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sft_world.model_folder(tmp_path_factory.mktemp("language_model"))


@pytest.fixture(scope="session")
def train_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sft_world.data(tmp_path_factory.mktemp("data") / "train", sft_world.edits(24))
