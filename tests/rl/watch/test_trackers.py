"""What reaches wandb and trackio, seen by modules that stand in for them; nothing goes over a network."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rl.watch.trackers import start_tracker
from run_lines import NOTHING, line

from emu3.errors import UserError


class FakeTracker(ModuleType):
    """Records its calls. The signatures are those of wandb 0.31 and trackio 0.43 as far as they are used."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.begun: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.finished = False

    def init(self, project: str, name: str, resume: str, config: dict[str, Any], **more: Any) -> None:
        if self.__name__ == "trackio" and more:
            raise TypeError(f"unexpected {more}")
        self.begun = {"project": project, "name": name, "resume": resume, "config": config, **more}

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        assert step is not None
        self.logged.append((step, metrics))

    def Image(self, path: str) -> tuple[str, str]:
        return "image", path

    def finish(self) -> None:
        self.finished = True


@pytest.fixture(params=["wandb", "trackio"])
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeTracker:
    fake = FakeTracker(request.param)
    monkeypatch.setitem(sys.modules, request.param, fake)
    return fake


def test_figures_are_flat_and_unknown_ones_absent(make_config: Any, module: FakeTracker) -> None:
    """None would be drawn as 0 or refused; a nested dict is not drawn at all."""
    tracker = start_tracker(make_config(watch={"tracker": module.__name__, "project": "p"}))
    assert tracker is not None
    tracker.log(line(7), None)
    tracker.log(line(8, **NOTHING), Path("pictures/step_000008.png"))
    tracker.close()
    (first, figures), (second, unknown) = module.logged
    assert (first, second) == (7, 8)
    assert figures["parts/sc"] == line(7)["parts"]["sc"] and figures["seconds/sample"] == 43.4
    assert figures["tokens_per_second/sampled"] == pytest.approx(135_680 / 43.4)
    assert all(isinstance(value, int | float) for value in figures.values()) and "step" not in figures
    assert "reward" not in unknown and "judge/latency_mean" not in unknown
    assert unknown["pictures"] == ("image", "pictures/step_000008.png")
    assert module.finished


def test_a_run_goes_on_under_its_name_and_without_secrets(make_config: Any, module: FakeTracker) -> None:
    """A second curve for each resume, or a judge's key on a public page."""
    judge = {"base_url": "http://user:key@a:1/v1,https://b:2/v1"}
    start_tracker(make_config(judge=judge, watch={"tracker": module.__name__}))
    assert (module.begun["name"], module.begun["resume"]) == ("run", "allow")
    assert module.begun.get("id") == ("run" if module.__name__ == "wandb" else None)
    assert module.begun["config"]["judge.base_url"] == "http://a:1/v1,https://b:2/v1"
    assert module.begun["config"]["rollout.group_size"] == 4


def test_one_that_cannot_begin_is_an_error_of_one_line(
    make_config: Any, module: FakeTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> None:
        raise ConnectionError("no\nlogin")

    monkeypatch.setattr(module, "init", init)
    with pytest.raises(UserError, match=r"could not begin: ConnectionError: no login; log in"):
        start_tracker(make_config(watch={"tracker": module.__name__}))


def test_none_is_the_default(make_config: Any) -> None:
    assert start_tracker(make_config()) is None
