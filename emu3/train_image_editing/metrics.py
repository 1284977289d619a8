"""What a fine-tuning run says about itself: `metrics.jsonl` for programs, one line per logging step for a person."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

METRICS = "metrics.jsonl"
SHOWN = (
    ("loss", "loss", ".4f"),
    ("eval_loss", "evaluation loss", ".4f"),
    ("grad_norm", "grad", ".3f"),
    ("learning_rate", "lr", ".2g"),
)
"""Key of the Trainer's log, its name and form on the console."""


class MetricsLog(TrainerCallback):
    """Takes the place of the Trainer's progress bar and printer.

    What the Trainer logs is appended to `metrics.jsonl`; a resumed run first cuts it back to its checkpoint.
    """

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            output_folder(args).mkdir(parents=True, exist_ok=True)
            _path(args).write_text("".join(json.dumps(entry) + "\n" for entry in state.log_history))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            entry = state.log_history[-1]
            with _path(args).open("a") as file:
                file.write(json.dumps(entry) + "\n")
            print(console_line(entry, state.max_steps), flush=True)


def console_line(entry: Mapping[str, Any], steps: int) -> str:
    """One entry of the Trainer's log; the last one of a run holds its time."""
    shown = [f"{name} {entry[key]:{form}}" for key, name, form in SHOWN if entry.get(key) is not None]
    if "train_runtime" in entry:
        shown.append(f"done in {entry['train_runtime']:.0f} s")
    return "  ".join([f"step {entry['step']}/{steps}", *shown])


def output_folder(args: TrainingArguments) -> Path:
    """Where the run writes."""
    return Path(str(args.output_dir))


def _path(args: TrainingArguments) -> Path:
    return output_folder(args) / METRICS
