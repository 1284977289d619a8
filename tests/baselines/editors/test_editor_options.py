"""Which options each editor takes."""

from __future__ import annotations

from typing import Any

import pytest

from baselines.editors.editing import EditorOptions
from baselines.evaluate import choose_editor
from emu3.errors import UserError
from rl.reward.config import JudgeConfig


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("no-edit", {"think": True}, "editor no-edit does not take --think"),
        ("aurora", {"top_k": 0}, "editor aurora does not take --top-k"),
        ("aurora", {"judge": JudgeConfig("u")}, "editor aurora does not take --judge-"),
        ("emu3", {"model": "m", "best_of": 5}, "--best-of needs a judge that picks"),
        ("emu3", {"model": "m", "best_of": 5, "judge": JudgeConfig("", "m")}, "--best-of needs a judge that picks"),
        ("emu3", {"model": "m", "judge": JudgeConfig("", prompts="c")}, "a judge picks among several edits"),
        ("emu3", {"model": "m", "judge": JudgeConfig("u")}, "a judge picks among several edits"),
        ("emu3", {"model": "m", "temperature": -1.0}, "temperature and top-k are 0 or more"),
        ("command", {}, "editor command needs --command"),
        ("folder", {}, "editor folder needs --images"),
        ("painter", {}, "no editor 'painter'; there are emu3, instruct-pix2pix"),
    ],
)
def test_options_that_an_editor_does_not_take(kind: str, options: dict[str, Any], message: str) -> None:
    """Guards a setting that is ignored in silence, and so a number that is not what its command says."""
    with pytest.raises(UserError, match=message):
        choose_editor(kind, EditorOptions(**options), image_area=256)
