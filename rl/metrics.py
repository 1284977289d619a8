"""What a run says about itself: one JSON line per step in `metrics.jsonl`, one console line, wandb if asked for.

The file continues over a resume: lines of steps that will be done again are dropped first, so it reads like the
file of a run that was never interrupted (but for its seconds).
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emu3.files import whole_file
from rl.config import Config
from rl.reward.outcome import Outcome, Score, Unparsable


@dataclass(frozen=True)
class Judged:
    """One rollout for the log: kind of edit, number of tokens, what the judge said."""

    task: str | None
    tokens: int
    outcome: Outcome


def reward_metrics(judged: Sequence[Judged]) -> dict[str, Any]:
    """Means over the rollouts that have a score, None where none has; failures are counted, never averaged."""
    scores = [item.outcome for item in judged if isinstance(item.outcome, Score)]
    by_task: dict[str, list[float]] = defaultdict(list)
    parts: dict[str, list[float]] = defaultdict(list)
    for item in judged:
        if isinstance(item.outcome, Score):
            by_task[item.task or "none"].append(item.outcome.value)
            for name, value in item.outcome.parts.items():
                parts[name].append(value)
    unparsable = sum(isinstance(item.outcome, Unparsable) for item in judged)
    return {
        "reward": _mean([score.value for score in scores]),
        "reward_by_task": {task: _mean(values) for task, values in sorted(by_task.items())},
        "parts": {name: _mean(values) for name, values in parts.items()},
        "rollouts": len(judged),
        "failed": len(judged) - len(scores),
        "unparsable": unparsable,
        "unavailable": len(judged) - len(scores) - unparsable,
        "answer_tokens": _mean([item.tokens for item in judged]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


class Timer:
    """Seconds per phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start


class MetricsLog:
    """Writes metrics. start: first step to come; lines of that step and later ones are dropped."""

    def __init__(self, path: Path, start: int, config: Config) -> None:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        with whole_file(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines if _is_before(line, start)), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._wandb = None if config.watch.tracker is None else _start_wandb(config)

    def write(self, metrics: dict[str, Any]) -> None:
        self._file.write(json.dumps(metrics, allow_nan=False) + "\n")
        self._file.flush()
        print(console_line(metrics), flush=True)
        if self._wandb is not None:
            self._wandb.log(metrics, step=metrics["step"])

    def close(self) -> None:
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish()


def console_line(metrics: dict[str, Any]) -> str:
    """The step in one line."""
    parts = " ".join(f"{name} {value:.2f}" for name, value in metrics["parts"].items())
    seconds = " ".join(f"{name} {value:.2f}" for name, value in metrics["seconds"].items())
    return (
        f"step {metrics['step']}  reward {_shown(metrics['reward'], '.3f')}  [{parts}]"
        f"  kl {_shown(metrics['kl'], '.4f')}  entropy {_shown(metrics['entropy'], '.3f')}"
        f"  constant {metrics['constant_share']:.2f}  failed {metrics['failed']}/{metrics['rollouts']}"
        f"  grad {_shown(metrics['grad_norm'], '.3f')}"
        f"  lr {metrics['lr']:.2g}  seconds [{seconds}]"
    )


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _is_before(line: str, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] < step)
    except json.JSONDecodeError:  # the last line of a run that was killed while writing
        return False


def _start_wandb(config: Config) -> Any:
    import wandb  # an extra; `rl.config` has checked that it is there

    name = config.run_name
    return wandb.init(project=config.watch.project, name=name, id=name, resume="allow", config=asdict(config))
