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


@pytest.fixture
def start(module: FakeTracker, tmp_path: Path) -> Any:
    """Begins a run called `run` in a folder, by default the same one."""

    def begin(folder: Path | None = None, **settings: Any) -> Tracker:
        folder = folder or tmp_path
        folder.mkdir(exist_ok=True)
        return Tracker(module.__name__, "p", folder, "run", settings, option="watch.tracker")

    return begin


def test_values_are_flat_and_unknown_ones_absent(module: FakeTracker, start: Any) -> None:
    """None would be drawn as 0 or refused; a nested dict is not drawn at all."""
    tracker = start()
    tracker.log({"step": 7, "parts": {"sc": 6.5}, "seconds": {"sample": 43.4}}, None)
    unknown = {"step": 8, "reward": None, "judge": {"latency_mean": None}}
    tracker.log(unknown, Path("pictures/step_000008.png"))
    tracker.close()
    assert module.logged == [
        (7, {"parts/sc": 6.5, "seconds/sample": 43.4}),
        (8, {"pictures": ("image", "pictures/step_000008.png")}),
    ]
    assert module.finished


def test_a_run_goes_on_as_itself_and_without_secrets(module: FakeTracker, start: Any) -> None:
    """A second curve for each resume, or a judge's key on a public page."""
    start(judge={"base_url": "http://user:key@a:1/v1,https://b:2/v1"}, rollout={"group_size": 4})
    assert (module.begun["project"], module.begun["resume"]) == ("p", "allow")
    assert module.__name__ != "wandb" or module.begun["name"] == "run"
    assert module.begun["config"] == {"judge.base_url": "http://a:1/v1,https://b:2/v1", "rollout.group_size": 4}


def test_one_that_cannot_begin_is_an_error_of_one_line(
    module: FakeTracker, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> None:
        raise ConnectionError("no\nlogin")

    monkeypatch.setattr(module, "init", init)
    expected = rf"watch.tracker={module.__name__} could not begin: ConnectionError: no login; log in"
    with pytest.raises(UserError, match=expected):
        start()


def identity(module: FakeTracker) -> str:
    """What the tracker knows the run by."""
    return str(module.begun["id" if module.__name__ == "wandb" else "name"])


def test_two_folders_of_one_name_are_two_runs(module: FakeTracker, start: Any, tmp_path: Path) -> None:
    """Both had the name as their id in wandb: the second resumed the first one's curves."""
    seen = []
    for folder in ("a", "a", "b"):
        start(tmp_path / folder)
        seen.append(identity(module))
    assert seen[0] == seen[1] != seen[2] and all(name.startswith("run-") for name in seen)


def test_a_run_that_was_begun_under_its_name_goes_on_there(module: FakeTracker, start: Any, tmp_path: Path) -> None:
    """An older version kept no id in the folder."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    start()
    (tmp_path / "metrics.jsonl").unlink()
    assert identity(module) == "run"
    start()
    assert identity(module) == "run"


@pytest.mark.parametrize("fault", ["log", "Image", "finish"])
def test_a_service_that_is_gone_costs_its_curves_alone(
    module: FakeTracker, start: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    """`wandb.log` raised in the middle of a run, which ended without a checkpoint."""

    def gone(*_: Any, **__: Any) -> None:
        raise RuntimeError("the service\nis gone")

    tracker = start()
    monkeypatch.setattr(module, fault, gone)
    for step in range(3):
        tracker.log({"step": step, "reward": 1.0}, Path("a.png"))
    tracker.close()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].endswith("RuntimeError: the service is gone; the run goes on")
