"""The quickstart's folder belongs to one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emu3.errors import UserError
from emu3.files import read_json, write_json
from shapes import quickstart
from shapes.quickstart import PRESETS, run


class Reached(Exception):
    """The first stage would run now."""


@pytest.fixture
def no_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Reached

    monkeypatch.setattr(quickstart.Stages, "run_all", stop)


@pytest.mark.usefixtures("no_stages")
def test_a_run_continues_under_the_same_settings_only(tmp_path: Path) -> None:
    """Stages that are done are not run again: under another seed the table would mix two runs."""
    for _ in range(2):
        with pytest.raises(Reached):
            run(PRESETS["smoke"], tmp_path, seed=0)
    for preset, seed in (("smoke", 1), ("full", 0)):
        with pytest.raises(UserError, match=r"holds a run with [\w.]+=.*: choose another --output-dir"):
            run(PRESETS[preset], tmp_path, seed)
    with pytest.raises(UserError, match='holds a run with engine="local", this one has engine="vllm"'):
        run(PRESETS["smoke"], tmp_path, 0, "vllm")
    with pytest.raises(Reached):
        run(PRESETS["smoke"], tmp_path, seed=0)


@pytest.mark.usefixtures("no_stages")
def test_a_folder_of_the_recipe_before_is_refused(tmp_path: Path) -> None:
    """The smoke preset's sizes are the same: a pretrained model of one recipe would be fine-tuned by the other."""
    with pytest.raises(Reached):
        run(PRESETS["smoke"], tmp_path, seed=0)
    settings = read_json(tmp_path / "settings.json")
    del settings["recipe"]
    write_json(tmp_path / "settings.json", settings)
    with pytest.raises(UserError, match="holds a run with recipe=1, this one has recipe=2: choose another"):
        run(PRESETS["smoke"], tmp_path, seed=0)
