"""The object that the trainer calls."""

from __future__ import annotations

import json
import sys
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from run_lines import line
from test_image_grids import judged

from rl.config_file import record_config
from rl.reward.scores import Outcome, Score
from rl.watch import watch as watch_module
from rl.watch.watch import Watch, start_tracker

SCORES: list[Outcome] = [Score(1.0, {}), Score(2.0, {}), Score(3.0, {})]


def watched(config: Any, run: Path, start: int, stop: int) -> None:
    run.mkdir(exist_ok=True)
    record_config(config, run / "config.json", resuming=False)
    watch = Watch(run, config, start)
    for step in range(start, stop):
        watch.step(line(step), judged(1, SCORES))
    watch.close()


def written() -> None:
    """Wait for an edition of the report that is being written."""
    for thread in threading.enumerate():
        if thread.name == "report":
            thread.join()


def test_failures_of_one_task_are_said_once(
    make_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards a policy that learns the tasks whose replies can be read; lines of an earlier start count, too."""
    run = tmp_path / "run"
    run.mkdir()
    config = make_config(steps=9)
    record_config(config, run / "config.json", resuming=False)
    watch = Watch(run, config, 0)
    scattered = {"rollouts_by_task": {"add": 64, "count": 64}, "failed_by_task": {"add": 1, "count": 1}}
    for step in range(3):
        watch.step(line(step, failed=2, **scattered), judged(1, SCORES))
    watch.step(line(3, failed=0, rollouts_by_task={"add": 64}, failed_by_task={}), judged(1, SCORES))
    assert "warning" not in capsys.readouterr().out
    for step in (4, 5):
        tasks = scattered | {"failed_by_task": {"count": 30}}
        watch.step(line(step, failed=30, **tasks), judged(1, SCORES))
    told = capsys.readouterr().out
    assert told.count("warning: failures go with the task: count 33 of 256, others 3 of 320;") == 1
    assert told.count("warning") == 1


def test_a_run_leaves_lines_images_and_a_report(
    make_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    watched(make_config(steps=8, watch={"images_every": 3, "report_every": 2}), run, 0, 8)
    assert [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()] == [
        line(s) for s in range(8)
    ]
    assert sorted(path.name for path in (run / "pictures").iterdir()) == [f"step_00000{step}.png" for step in (0, 3, 6)]
    assert "Finished · step 8 of 8" in (run / "report.html").read_text()
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 9
    # Two steps of 119.2 and 120.2 seconds came after the first.
    assert [text.split()[-2:] for text in (told[1], told[3], told[8])] == [["1.06k", "-"], ["10", "min"], ["0", "s"]]


def test_every_edition_of_the_report_has_its_steps(
    make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report that is one edition late, or only written at the end, shows nothing while it is needed."""
    monkeypatch.setattr(watch_module, "REPORT_SHARE", float("inf"))
    config = make_config(steps=9, watch={"report_every": 2})
    run = tmp_path / "run"
    run.mkdir()
    record_config(config, run / "config.json", resuming=False)
    watch = Watch(run, config, 0)
    seen = []
    for step in range(4):
        watch.step(line(step), [])
        written()
        seen.append((run / "report.html").read_text().split("step ")[1].split(" ")[0])
    assert seen == ["1", "1", "3", "3"]


def test_editions_become_rarer_as_they_become_slow(
    make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20,000 steps spent 27 minutes on a page that grew with them, while every rank waited."""
    editions: list[Path] = []
    begun, may_end = threading.Event(), threading.Event()

    def slow(run: Path) -> None:
        begun.set()
        assert may_end.wait(60)
        editions.append(run)

    monkeypatch.setattr(watch_module, "write_report", slow)
    monkeypatch.setattr(watch_module, "REPORT_SHARE", 1e-9)
    (tmp_path / "run").mkdir()
    watch = Watch(tmp_path / "run", make_config(steps=9, watch={"report_every": 1}), 0)
    watch.step(line(0), [])
    assert begun.wait(60) and not editions  # the step did not wait
    watch.step(line(1), [])
    may_end.set()
    written()
    for step in range(2, 9):
        watch.step(line(step), [])
    written()
    assert len(editions) == 1
    watch.close()
    assert len(editions) == 2


@pytest.mark.parametrize(
    ("judged", "engine", "said"),
    [(0.5, "local", None), (5.5, "local", None), (40.0, "local", "prompts_per_batch=1"), (90.0, "local", "ahead=1"),
     (40.0, "vllm", "max_sequences=4")],
)  # fmt: skip
def test_waiting_for_the_judge_is_said_with_what_hides_it(
    make_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], judged: float, engine: str, said: str | None
) -> None:
    (tmp_path / "run").mkdir()
    config = make_config(steps=9, rollout={"engine": engine}, watch={"images_every": 0, "report_every": 0})
    watch = Watch(tmp_path / "run", config, 0)
    for step in range(5):
        watch.step(line(step) | {"seconds": {"sample": 43.0, "judge": judged, "train": 62.0}}, [])
    notes = [text for text in capsys.readouterr().out.splitlines() if text.startswith("note: ")]
    assert len(notes) == (said is not None) and (said is None or said in notes[0])


def test_a_resumed_run_reads_as_an_uninterrupted_one(make_config: Any, tmp_path: Path) -> None:
    """Steps that are done again replace their lines."""
    config = make_config(steps=6, watch={"images_every": 2, "report_every": 1})
    watched(config, tmp_path / "whole", 0, 6)
    watched(config, tmp_path / "parts", 0, 5)
    watched(config, tmp_path / "parts", 3, 6)
    whole, parts = ((tmp_path / run / "metrics.jsonl").read_bytes() for run in ("whole", "parts"))
    assert whole == parts
    assert "step 6 of 6" in (tmp_path / "parts" / "report.html").read_text()


def test_nothing_more_is_written_where_nothing_is_asked_for(make_config: Any, tmp_path: Path) -> None:
    watched(make_config(steps=2, watch={"images_every": 0, "report_every": 0}), tmp_path / "run", 0, 2)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "metrics.jsonl"]


class FakeWandb(ModuleType):
    """Records what it is called with; of wandb's interface what `emu3.report.metrics_file` uses."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.begun: dict[str, Any] = {}
        self.logged: list[dict[str, Any]] = []

    def init(self, **given: Any) -> None:
        self.begun = given

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self.logged.append({"step": step, **metrics})

    def Image(self, path: str) -> str:
        return path

    def finish(self) -> None:
        self.logged.append({"finished": True})


def test_the_tracker_gets_the_config_and_every_step(
    make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates, parts and phases under their names, the grid of images, no key of the judge's address."""
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    judge = {"base_url": "http://user:key@a:1/v1"}
    run = tmp_path / "run"
    watched(make_config(steps=2, judge=judge, watch={"tracker": "wandb", "images_every": 2}), run, 0, 2)
    assert wandb.begun["config"]["judge.base_url"] == "http://a:1/v1"
    assert wandb.begun["config"]["rollout.group_size"] == 4
    first, second, end = wandb.logged
    assert end == {"finished": True} and (first["step"], second["step"]) == (0, 1)
    assert first["tokens_per_second/sampled"] == pytest.approx(135_680 / 43.4)
    assert first["pictures"] == str(run / "pictures" / "step_000000.png") and "pictures" not in second
    assert second["parts/sc"] == line(1)["parts"]["sc"] and second["seconds/sample"] == 43.4
    assert start_tracker(make_config(), tmp_path) is None


def test_a_full_disk_costs_the_outputs_and_not_the_run(
    make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page, the images and the line used to end the run with a traceback; each is said once."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    config = make_config(steps=3, watch={"images_every": 1, "report_every": 1})
    run = tmp_path / "run"
    run.mkdir()
    record_config(config, run / "config.json", resuming=False)
    watch = Watch(run, config, 0)
    monkeypatch.setattr("emu3.report.run_page.whole_file", full)
    monkeypatch.setattr("rl.watch.watch.whole_file", full)
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    for step in range(3):
        watch.step(line(step), judged(1, SCORES))
    watch.close()
    told = capsys.readouterr()
    assert [text.split(":")[1] for text in told.err.splitlines()] == [
        " no line in metrics.jsonl",
        " no grid of images",
        " no report.html",
    ]
    assert len(told.out.splitlines()) == 4
