"""What a fine-tuning run shows of itself: a line of a table per logging step, `metrics.jsonl`, and a page.

    python -m emu3.train_image_editing.metrics RUN_FOLDER       writes the page from the run's files, at any time

`metrics.jsonl` holds what the Trainer logs, each entry with the run's `max_steps`; a number that is not finite becomes
null. A resumed run first cuts the file back to its checkpoint. Of what `EditTrainer` adds to an entry of training,
`tokens`, `seconds` and `memory_gb`, entries of older runs have nothing; that is a dash. What cannot be written, on a
full disk, costs the run nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from emu3.errors import UserError, run_main
from emu3.files import read_json
from emu3.flags import CommandParser
from emu3.report.charts import lines_chart, running_mean
from emu3.report.console import Table, duration, settled_median, short, shown, step_of
from emu3.report.metrics_file import NAME, MetricsFile, Spared, lines_before, read_lines
from emu3.report.run_page import (
    REPORT,
    Head,
    Panel,
    Section,
    StepMetric,
    curves,
    last_written,
    panels,
    unmoved,
    write_page,
)  # fmt: skip

ARGUMENTS = "sft_arguments.json"
REPORT_SECONDS, REPORT_SHARE = 15.0, 0.02
"""Seconds between two editions of the page: at least so many, and so many that writing takes this share at most."""

SECOND_HALF = 20
"""Entries in the second half of a run for which its losses get a chart of their own."""


def _value(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda line: line.get(name)


LOSSES = (StepMetric("training", "", _value("loss")), StepMetric("evaluation", "", _value("eval_loss")))
LEARNING = (
    StepMetric("Gradient norm", "before clipping", _value("grad_norm")),
    StepMetric("Learning rate", "", _value("learning_rate"), exact=True),
)
WORK = (
    StepMetric("Tokens per second", "over all ranks, without padding", _value("tokens_per_second")),
    StepMetric("Seconds per step", "", _value("seconds_per_step")),
    StepMetric("Memory", "peak of the first rank, GB", _value("memory_gb"), exact=True),
)


class MetricsLog(TrainerCallback):
    """Takes the place of the Trainer's progress bar and printer. Rank 0 alone prints and writes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._file: MetricsFile | None = None
        self._lines: list[dict[str, Any]] = []  # the file's, with rates
        self._last_trained = 0  # the step of the last entry of training, or at which this process began
        self._table = Table()
        self._spared = Spared()
        self._next_report = -math.inf

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self._begin(args, [_line(entry, state.max_steps) for entry in state.log_history], state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        if self._file is None:  # an evaluation alone
            self._begin(args, lines_before(output_folder(args), math.inf), 0)
        assert self._file is not None
        line = _line(state.log_history[-1], state.max_steps)
        with self._spared.output(f"line in {NAME}"):
            self._file.append(line)
        self._lines.append(_with_rates(line, self._last_trained))
        if "loss" in line:
            self._last_trained = line["step"]
        with self._spared.output("line of the table"):
            if "train_runtime" in line:
                print(
                    f"{line['step']} of {state.max_steps} steps done in {duration(line['train_runtime'])}", flush=True
                )
            else:
                evaluates = args.eval_strategy != "no" or "eval_loss" in line
                print(self._table.lines(cells(self._lines, evaluates)), flush=True)
        if self._clock() >= self._next_report:
            self._write_report(args, state, finished=False)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero and self._lines:
            self._write_report(args, state, finished=True)

    def _begin(self, args: TrainingArguments, lines: Sequence[dict[str, Any]], step: int) -> None:
        self._file = MetricsFile(output_folder(args), lines)
        self._lines = with_rates(lines)
        self._last_trained = step

    def _write_report(self, args: TrainingArguments, state: TrainerState, finished: bool) -> None:
        began = self._clock()
        best = state.best_model_checkpoint
        with self._spared.output(REPORT):
            _write(output_folder(args), self._lines, finished, Path(best).name if best else None)
        ended = self._clock()
        self._next_report = ended + max(REPORT_SECONDS, (ended - began) / REPORT_SHARE)


def output_folder(args: TrainingArguments) -> Path:
    """Where the run writes."""
    return Path(str(args.output_dir))


def cells(lines: Sequence[Mapping[str, Any]], evaluates: bool) -> dict[str, str]:
    """The last line as it is shown, by the names of its columns. lines: of the run so far, with rates. evaluates:
    whether the run has evaluations, which have lines of their own."""
    line = lines[-1]
    left = _seconds_left(lines)
    return {
        "step": step_of(line["step"], line["max_steps"]),
        "loss": shown(line.get("loss"), ".4f"),
        **({"eval loss": shown(line.get("eval_loss"), ".4f")} if evaluates else {}),
        "grad": shown(line.get("grad_norm"), ".3f"),
        "lr": shown(line.get("learning_rate"), ".2e"),
        "tokens/s": short(line["tokens_per_second"]),
        "s/step": shown(line["seconds_per_step"], ".3g"),
        "GB": shown(line.get("memory_gb"), ".1f"),
        "left": "-" if left is None else duration(left),
    }


def with_rates(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lines with `tokens_per_second` and `seconds_per_step`, None where the line does not say them."""
    rated, last_trained = [], 0
    for line in lines:
        rated.append(_with_rates(line, last_trained))
        if "loss" in line:
            last_trained = line["step"]
    return rated


def _with_rates(line: Mapping[str, Any], last_trained: int) -> dict[str, Any]:
    """last_trained: the step of the entry of training before it, if the line itself does not say its `steps`."""
    passed, tokens = line.get("seconds"), line.get("tokens")
    steps = line.get("steps", line["step"] - last_trained)
    return {
        **line,
        "tokens_per_second": tokens / passed if passed and tokens else None,
        "seconds_per_step": passed / steps if passed and steps > 0 else None,
    }


def _line(entry: Mapping[str, Any], max_steps: int) -> dict[str, Any]:
    """An entry of the Trainer's log for the file. JSON has no number that is not finite."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in entry.items()
    }
    return {**finite, "max_steps": max_steps}


def write_report(run: Path) -> Path:
    """Write the page of a run that has logged a step; returns its path. Raises UserError for another folder."""
    lines = read_lines(run)
    if not lines:
        raise UserError(f"{run / NAME} has no step yet")
    return _write(run, with_rates(lines), "train_runtime" in lines[-1], _best_checkpoint(run))


def _best_checkpoint(run: Path) -> str | None:
    """The folder's name, as the Trainer said in the last checkpoint that is there."""
    states = run.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")
    for path in sorted(states, key=lambda path: -int(path.parent.name.rpartition("-")[2])):
        with suppress(UserError):  # cut short: the one before says it as well
            best = read_json(path).get("best_model_checkpoint")
            return Path(best).name if best else None
    return None


def _write(run: Path, lines: Sequence[Mapping[str, Any]], finished: bool, best: str | None) -> Path:
    done, steps = lines[-1]["step"], lines[-1].get("max_steps") or None
    arguments = run / ARGUMENTS
    head = Head(
        name=run.resolve().name,
        done=done,
        steps=steps,
        finished=finished,
        written=last_written(run / NAME),
        facts=_facts(lines, best) | ({} if finished else {"Left": _or_dash(_seconds_left(lines), duration)}),
        settings=read_json(arguments) if arguments.is_file() else {},
    )
    sections = [
        Section("Learning", [*_loss_panels(lines), *panels(lines, LEARNING)]),
        Section("Speed and memory", panels(lines, WORK), unmoved(lines, [*LEARNING, *WORK])),
    ]
    return write_page(run / REPORT, head, sections)


def _loss_panels(lines: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Both losses on one scale; once they are many, the second half again, which the fall at the start flattens."""
    middle = lines[-1]["step"] / 2
    late = [line for line in lines if line["step"] >= middle]
    titles = [("Loss", "nats per target token", lines)]
    if len(late) >= SECOND_HALF:
        titles.append(("Loss, second half", f"from step {late[0]['step']} on", late))
    panels = []
    for title, note, shown_lines in titles:
        found = [replace(curve, raw=metric is LOSSES[0]) for metric, curve in curves(shown_lines, LOSSES)]
        if found:
            panels.append(Panel(title, note, lines_chart(title, found), [curve.name for curve in found]))
    return panels


def _facts(lines: Sequence[Mapping[str, Any]], best: str | None) -> dict[str, str]:
    """The run in a few values, by their names. best: checkpoint, if the Trainer chose one."""
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    evaluations = [(line["eval_loss"], line["step"]) for line in lines if line.get("eval_loss") is not None]
    smooth = running_mean(losses) if losses else []
    facts = {"Loss": f"{smooth[0]:.3f} → {smooth[-1]:.3f}" if smooth else "–"}
    if evaluations:
        lowest, step = min(evaluations)
        last = evaluations[-1][0]
        facts["Evaluation loss"] = f"{last:.3f}" + (f", lowest {lowest:.3f} at step {step}" if lowest < last else "")
    if best is not None:
        facts["Best checkpoint"] = best
    trained = [line for line in lines if "loss" in line]
    tokens = [line["tokens"] for line in trained if line.get("tokens") is not None]
    peaks = [line["memory_gb"] for line in lines if line.get("memory_gb") is not None]
    return facts | {
        "Tokens": _or_dash(sum(tokens) if len(tokens) == len(trained) else None, short),
        "Tokens per second": _or_dash(_recent(lines, "tokens_per_second"), short),
        "A step takes": _or_dash(_recent(lines, "seconds_per_step"), duration),
        "Peak memory": _or_dash(max(peaks, default=None), lambda value: f"{value:.1f} GB"),
    }


def _recent(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The median of late; the first value, in which the run settled, while there is no other."""
    values = [line[name] for line in lines if line[name] is not None]
    return settled_median(values, enough=1) or (values[0] if values else None)


def _seconds_left(lines: Sequence[Mapping[str, Any]]) -> float | None:
    each, steps = _recent(lines, "seconds_per_step"), lines[-1].get("max_steps")
    return None if each is None or not steps else each * (steps - lines[-1]["step"])


def _or_dash(value: float | None, form: Callable[[float], str]) -> str:
    return "–" if value is None else form(value)


def main() -> None:
    parser = CommandParser(description="Write the page of a fine-tuning run.")
    parser.add_argument("run", type=Path, help="output folder of the run, which holds metrics.jsonl")
    print(write_report(parser.parse_args().run))


if __name__ == "__main__":
    run_main(main)
