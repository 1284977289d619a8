"""What reaches wandb and trackio, seen by modules that stand in for them; nothing goes over a network."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from emu3.errors import UserError
from emu3.report.metrics_file import Tracker


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


def start(module: FakeTracker, **settings: Any) -> Tracker:
    return Tracker(module.__name__, "p", "run", settings, option="watch.tracker")


def test_values_are_flat_and_unknown_ones_absent(module: FakeTracker) -> None:
    """None would be drawn as 0 or refused; a nested dict is not drawn at all."""
    tracker = start(module)
    tracker.log({"step": 7, "parts": {"sc": 6.5}, "seconds": {"sample": 43.4}}, None)
    unknown = {"step": 8, "reward": None, "judge": {"latency_mean": None}}
    tracker.log(unknown, Path("pictures/step_000008.png"))
    tracker.close()
    assert module.logged == [
        (7, {"parts/sc": 6.5, "seconds/sample": 43.4}),
        (8, {"pictures": ("image", "pictures/step_000008.png")}),
    ]
    assert module.finished


def test_a_run_goes_on_under_its_name_and_without_secrets(module: FakeTracker) -> None:
    """A second curve for each resume, or a judge's key on a public page."""
    start(module, judge={"base_url": "http://user:key@a:1/v1,https://b:2/v1"}, rollout={"group_size": 4})
    assert (module.begun["project"], module.begun["name"], module.begun["resume"]) == ("p", "run", "allow")
    assert module.begun.get("id") == ("run" if module.__name__ == "wandb" else None)
    assert module.begun["config"] == {"judge.base_url": "http://a:1/v1,https://b:2/v1", "rollout.group_size": 4}


def test_one_that_cannot_begin_is_an_error_of_one_line(module: FakeTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise ConnectionError("no\nlogin")

    monkeypatch.setattr(module, "init", init)
    expected = rf"watch.tracker={module.__name__} could not begin: ConnectionError: no login; log in"
    with pytest.raises(UserError, match=expected):
        start(module)
