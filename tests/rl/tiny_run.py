"""What runs of the tiny world share: their config, a scorer that scores at once, and several ranks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from warm_ranks import warm_ranks

from rl.config import Config
from rl.config_file import build_config
from rl.reward.counters import JudgeStep
from rl.reward.scores import Outcome, Score


def config_of(world: Path, folder: Path, **changes: Any) -> Config:
    """A `Config` of the tiny world that writes into `folder`; `changes` replace or extend whole sections."""
    tree: dict[str, Any] = {
        "run_name": "run",
        "output_dir": str(folder),
        "model": str(world / "model"),
        "vision": str(world / "vision"),
        "data": {"sets": [str(world / "data")]},
        "judge": {"base_url": "http://stub/v1", "pause_seconds": 0.0, "pauses": 1},
        "steps": 2,
        "rollout": {"prompts_per_step": 3, "group_size": 4},
        "objective": {"kl": 0.01},
        "optimizer": {"lr": 3e-3},
        "compute": {"micro_batch": 5},
    }
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    return build_config(tree)


class StubScorer:
    """Scores the brightness of an image's left half, at once.

    fail: calls, by number, that give another outcome. constant: score for every image.
    """

    judge_name = "stub"

    def __init__(self, fail: dict[int, Outcome] | None = None, constant: float | None = None) -> None:
        self.fail = fail or {}
        self.constant = constant
        self.calls = 0

    def submit(
        self, instruction: str, source: Image.Image, edited: Image.Image, target: Image.Image | None = None
    ) -> Future[Outcome]:
        pixels = np.asarray(edited, dtype=np.float64)
        brightness = float(pixels[:, : pixels.shape[1] // 2].mean() / 25.5)
        value = brightness if self.constant is None else self.constant
        outcome = self.fail.get(self.calls, Score(value, {"sc": value, "pq": 10.0}))
        self.calls += 1
        future: Future[Outcome] = Future()
        future.set_result(outcome)
        return future

    def step(self) -> JudgeStep:
        return JudgeStep(counts={}, latencies=[], busy_seconds=0.0, endpoints={})


def run_ranks(ranks: int, configs: Sequence[Config]) -> list[list[dict[str, Any]]]:
    """Trains with stub scorers on several gloo ranks, one run after the other; returns the lines of each."""
    folders = [Path(config.output_dir) / config.run_name for config in configs]
    paths = [folder.with_suffix(f".{index}.json") for index, folder in enumerate(folders)]
    for path, config in zip(paths, configs, strict=True):
        path.write_text(json.dumps(dataclasses.asdict(config)))
    done = warm_ranks(ranks, str(Path(__file__).with_name("stub_run.py")), *map(str, paths))
    assert done.returncode == 0, done.stderr[-2000:]
    return [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in folders]


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a run but for what a clock says, the judge's latencies included."""
    return [{key: value for key, value in line.items() if key not in ("seconds", "judge")} for line in lines]
