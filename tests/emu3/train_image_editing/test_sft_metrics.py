"""What a fine-tuning run shows of itself, from the Trainer's log without a training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sft_world
from transformers import TrainerControl, TrainerState

from dev.screenshots import find_browser
from emu3.errors import UserError
from emu3.files import write_json
from emu3.report.metrics_file import read_lines
from emu3.report.run_page import REFRESH
from emu3.train_image_editing import metrics
from emu3.train_image_editing.metrics import REPORT_SECONDS, MetricsLog, cells, with_rates, write_report

OLD = ("tokens", "seconds", "memory_gb")
"""What entries of runs before this page have not."""


def entry(step: int, **changes: Any) -> dict[str, Any]:
    """An entry of training, after ten steps of two seconds each."""
    return {
        "loss": 5.0 - step / 100,
        "grad_norm": 1.0 + step % 3,
        "learning_rate": 1e-5 * (100 - step),
        "tokens": 40_000 + step,
        "seconds": 20.0,
        "memory_gb": 61.25,
        "epoch": step / 50,
        "step": step,
        **changes,
    }


def evaluation(step: int, loss: float) -> dict[str, Any]:
    return {"eval_loss": loss, "eval_runtime": 3.0, "epoch": step / 50, "step": step}


def end(step: int) -> dict[str, Any]:
    return {"train_runtime": 240.0, "train_loss": 4.5, "total_flos": 1.0, "step": step}


class Run:
    """A Trainer's calls of the callback. `time` is what its clock says."""

    def __init__(self, output: Path, before: list[dict[str, Any]] | None = None, rank: int = 0) -> None:
        self.time = 0.0
        self.args = sft_world.trainer_arguments(output, eval_strategy="steps", eval_steps=10)
        self.state = TrainerState(max_steps=100, is_world_process_zero=rank == 0, log_history=list(before or []))
        self.log = MetricsLog(lambda: self.time)
        self._call = (self.args, self.state, TrainerControl())
        self.state.global_step = before[-1]["step"] if before else 0

    def begin(self) -> Run:
        self.log.on_train_begin(*self._call)
        return self

    def add(self, *entries: dict[str, Any]) -> Run:
        for each in entries:
            self.state.log_history.append(each)
            self.state.global_step = each["step"]
            self.log.on_log(*self._call)
        return self

    def finish(self) -> None:
        self.add(end(self.state.global_step))
        self.log.on_train_end(*self._call)


def page_of(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def rows(told: str) -> list[dict[str, str]]:
    """Lines of the table by the names of their columns, of which only `eval loss` has a space."""
    heading, *lines = told.replace("eval loss", "eval_loss").splitlines()
    return [dict(zip(heading.split(), line.split(maxsplit=8), strict=True)) for line in lines if line[0] == " "]


def test_the_table_has_what_a_run_is_watched_by(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Loss alone does not say whether the run is slow, near its memory's end, or done tomorrow."""
    Run(tmp_path).begin().add(entry(10, seconds=90.0), evaluation(10, 4.75), entry(20), entry(30)).finish()
    told = capsys.readouterr().out
    first, evaluated, second, third = rows(told)
    assert first == {
        "step": "10/100", "loss": "4.9000", "eval_loss": "-", "grad": "2.000", "lr": "9.00e-04", "tokens/s": "445",
        "s/step": "9", "GB": "61.2", "left": "14 min",
    }  # fmt: skip
    assert (evaluated["step"], evaluated["eval_loss"], evaluated["loss"]) == ("10/100", "4.7500", "-")
    assert (second["tokens/s"], second["s/step"], second["left"]) == ("2k", "2", "3 min")  # the first is settling
    assert third["left"] == "2 min" and told.splitlines()[-1] == "30 of 100 steps done in 4 min"


def test_entries_of_older_runs_have_a_dash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs outlive releases: no rate, no memory, no time left is made up, nor does the page end the run."""
    old = [{key: value for key, value in entry(step).items() if key not in OLD} for step in (10, 20)]
    Run(tmp_path).begin().add(*old)
    shown = rows(capsys.readouterr().out)[-1]
    assert {shown[name] for name in ("tokens/s", "s/step", "GB", "left")} == {"-"} and shown["loss"] == "4.8000"
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in old))
    page = write_report(tmp_path).read_text()
    assert "Running · step 20 · " in page and page.count("<dd>–</dd>") == 5 and "nan" not in page


def test_rates_after_a_resume_are_of_the_steps_that_were_done(tmp_path: Path) -> None:
    """Stopped at 15, logged at 10 and 20: the seconds are those of five steps, not of ten."""
    run = Run(tmp_path, [entry(10)])
    run.state.global_step = 15
    run.begin().add(entry(20, seconds=10.0))
    assert "<dt>A step takes</dt><dd>2 s</dd>" in page_of(tmp_path)
    lines = with_rates([{**entry(10), "max_steps": 100}, {**entry(20, seconds=10.0, steps=5), "max_steps": 100}])
    assert cells(lines, False)["s/step"] == "2"


def test_the_file_holds_the_log_and_is_cut_back(tmp_path: Path) -> None:
    """A stretch that is done again occurs twice otherwise."""
    run = Run(tmp_path).begin().add(entry(10), entry(20), entry(30))
    assert read_lines(tmp_path) == [{**each, "max_steps": 100} for each in run.state.log_history]
    Run(tmp_path, [entry(10), entry(20)]).begin().add(entry(30, loss=1.0)).finish()
    assert [line["step"] for line in read_lines(tmp_path)] == [10, 20, 30, 30]
    assert read_lines(tmp_path)[2]["loss"] == 1.0


def test_an_evaluation_alone_is_added_to_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`trainer.evaluate()` on the folder of a run that is done: its lines must not go."""
    Run(tmp_path).begin().add(entry(10)).finish()
    Run(tmp_path).add(evaluation(10, 4.0))
    assert len(read_lines(tmp_path)) == 3 and read_lines(tmp_path)[-1]["eval_loss"] == 4.0


def test_a_number_that_is_not_finite_is_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`NaN` is no JSON, and one such step must not take the page from the others."""
    Run(tmp_path).begin().add(entry(10, grad_norm=float("inf"), loss=float("nan")), entry(20)).finish()
    assert (read_lines(tmp_path)[0]["loss"], read_lines(tmp_path)[0]["grad_norm"]) == (None, None)
    assert "nan" not in page_of(tmp_path) and rows(capsys.readouterr().out)[0]["loss"] == "-"


def test_the_page_shows_the_run(tmp_path: Path) -> None:
    write_json(tmp_path / "sft_arguments.json", {"model_name_or_path": "<b>m", "lr_scheduler_kwargs": {"min_lr": 1e-5}})
    run = Run(tmp_path).begin()
    for step in range(10, 60, 10):
        run.add(entry(step), evaluation(step, 4.5 if step == 40 else 4.8))
    run.state.best_model_checkpoint = f"{tmp_path}/checkpoint-40"
    run.time = 1000.0
    run.add(entry(60))
    page = page_of(tmp_path)
    assert f'<meta http-equiv="refresh" content="{REFRESH}">' in page and "Running · step 60 of 100" in page
    for fact, value in {
        "Evaluation loss": "4.800, lowest 4.500 at step 40",
        "Best checkpoint": "checkpoint-40",
        "Tokens": "240k",
        "Tokens per second": "2k",
        "A step takes": "2 s",
        "Peak memory": "61.2 GB",
        "Left": "80 s",
    }.items():
        assert f"<dt>{fact}</dt><dd>{value}</dd>" in page
    assert page.count('class="raw"') == 1 and '<i class="c0"></i>training <i class="c1"></i>evaluation' in page
    for title in ("Loss", "Gradient norm", "Learning rate", "Tokens per second"):
        assert f"<figcaption>{title} " in page
    assert "seconds per step 2; memory 61.25." in page
    assert "<b>m" not in page and "lr_scheduler_kwargs.min_lr" in page and "http://" not in page
    run.finish()
    assert "Finished · step 60 of 100" in page_of(tmp_path) and "Left" not in page_of(tmp_path)


def test_a_long_run_shows_its_second_half_on_a_scale_of_its_own(tmp_path: Path) -> None:
    """The fall from 12 to 4 in the first steps leaves a flat line where one has to see whether it still learns."""
    run = Run(tmp_path).begin().add(*(entry(step, loss=12.0 / step) for step in range(1, 39)))
    assert "second half" not in page_of(tmp_path)
    run.finish()
    assert "<figcaption>Loss, second half <span>from step 19 on</span>" in page_of(tmp_path)


def test_the_page_can_be_made_from_the_files(tmp_path: Path) -> None:
    """Of a run that was killed, or on another machine; the best checkpoint is what the last whole one says."""
    run = Run(tmp_path / "colours").begin().add(*(entry(step) for step in (10, 20, 30)))
    run.finish()
    live = page_of(tmp_path / "colours")
    for step, text in ((20, json.dumps({"best_model_checkpoint": "/elsewhere/checkpoint-10"})), (100, '{"best')):
        folder = tmp_path / "colours" / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(text)
    command = [sys.executable, "-m", "emu3.train_image_editing.metrics", str(tmp_path / "colours")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said == f"{tmp_path}/colours/report.html\n"
    made = page_of(tmp_path / "colours")
    assert "<dt>Best checkpoint</dt><dd>checkpoint-10</dd>" in made
    assert made.replace("    <div><dt>Best checkpoint</dt><dd>checkpoint-10</dd></div>\n", "") == live
    with pytest.raises(UserError, match="does not exist"):
        write_report(tmp_path)


def test_editions_of_the_page_lie_apart(tmp_path: Path) -> None:
    """A page per step of a fast run takes its time from the training; the last edition is always written."""
    run = Run(tmp_path).begin()
    steps = []
    for step in range(1, 41):
        run.time += 1.0
        run.add(entry(step))
        steps.append(page_of(tmp_path).split("step ")[1].split(" ")[0])
    assert REPORT_SECONDS == 15 and list(dict.fromkeys(steps)) == ["1", "16", "31"]
    run.finish()
    assert "Finished · step 40" in page_of(tmp_path)


def test_a_page_that_is_slow_to_write_comes_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network disk that takes ten seconds for it: at most a fiftieth of the run's time."""
    run, plain, written = Run(tmp_path), metrics.write_page, []

    def slow(*inputs: Any) -> Path:
        written.append(run.time)
        run.time += 10.0
        return plain(*inputs)

    monkeypatch.setattr(metrics, "write_page", slow)
    run.begin()
    for step in range(1, 101):
        run.time += 10.0
        run.add(entry(step))
    assert run.time == 1020.0 and written == [10.0, 520.0]


def test_other_ranks_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Run(tmp_path / "out", rank=1).begin().add(entry(10)).finish()
    assert not (tmp_path / "out").exists() and capsys.readouterr().out == ""


def test_a_full_disk_costs_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Days of training ended with a traceback over a line of a log; it is said once, for the line and for the page."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    run = Run(tmp_path).begin()
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    monkeypatch.setattr("emu3.report.run_page.whole_file", full)
    run.add(entry(10), entry(20)).finish()
    told = capsys.readouterr()
    assert [line.split(":")[1] for line in told.err.splitlines()] == [" no line in metrics.jsonl", " no report.html"]
    assert len(rows(told.out)) == 2


@pytest.mark.skipif(find_browser() is None, reason="no browser")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_in_a_browser_without_a_complaint(tmp_path: Path, scheme: Any) -> None:
    """Nothing overflows a phone, both losses have their colours and marks, a dead run says how old its page is."""
    playwright = pytest.importorskip("playwright.sync_api")
    run = Run(tmp_path).begin()
    for step in range(5, 85, 5):
        run.add(entry(step), *([evaluation(step, 4.6)] if step % 20 == 0 else []))
    os.utime(tmp_path / "metrics.jsonl", (1e9, 1e9))
    said: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(write_report(tmp_path).as_uri())
        width = page.evaluate("document.documentElement.scrollWidth")
        strokes = [
            page.eval_on_selector(f"path.{kind}", "path => getComputedStyle(path).stroke")
            for kind in ("line.c0", "marks.c1")
        ]
        age = page.inner_text("#age")
        browser.close()
    assert not said and width <= 390 and "days before this page was loaded" in age
    expected = (
        ["rgb(194, 65, 12)", "rgb(37, 99, 168)"] if scheme == "light" else ["rgb(255, 154, 92)", "rgb(120, 178, 245)"]
    )
    assert strokes == expected
