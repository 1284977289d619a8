"""Lines of `metrics.jsonl` as a run writes them, without a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def line(step: int, **changes: Any) -> dict[str, Any]:
    """A step's line with every key that the trainer writes."""
    return {
        "step": step,
        "reward": 6.0 + math.sin(step),
        "reward_by_task": {"add": 8.0, "count": 4.0 + math.sin(step)},
        "parts": {
            "edit_success": 7.5,
            "overedit": 6.75,
            "naturalness": 10.0,
            "no_artifacts": 9.8125,
            "sc": 6.0 + math.sin(step),
            "pq": 9.8125,
        },
        "rollouts": 128,
        "failed": 1,
        "unparsable": 1,
        "unavailable": 0,
        "answer_tokens": 1060.0,
        "sampled_tokens": 135_680,
        "constant_share": 0.1875,
        "prompts": 16,
        "trained_tokens": 65_536,
        "loss": 1e-8,
        "kl": 0.001 * step,
        "entropy": 6.1,
        "logprob_gap": 1e-3,
        "mismatch_kl": 1e-6,
        "grad_norm": 0.2,
        "clip_share": 0.0,
        "lr": 3e-6,
        "probe_gap": 0.002,
        "judge": {"asks": 256, "latency_mean": 2.345, "hidden_share": 0.8},
        "seconds": {"sample": 43.4, "judge": 5.5, "reference": 7.7, "train": 61.6 + step % 7},
        **changes,
    }


NOTHING: dict[str, Any] = {
    "reward": None,
    "reward_by_task": {},
    "parts": {},
    "failed": 128,
    "answer_tokens": None,
    "trained_tokens": 0,
    "kl": None,
    "entropy": None,
    "logprob_gap": None,
    "mismatch_kl": None,
    "clip_share": None,
    "grad_norm": None,
    "probe_gap": None,
    "judge": None,
}
"""What is unknown in a step in which nothing was scored."""


def write_run(run: Path, lines: list[dict[str, Any]], steps: int, **config: Any) -> Path:
    """A run's folder with these lines and the settings that the report reads."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "config.json").write_text(json.dumps({"run_name": run.name, "steps": steps, **config}))
    return run
