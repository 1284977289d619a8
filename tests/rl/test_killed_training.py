"""A run that is killed at any moment goes on as if nothing had happened."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tiny_run import without_times

KILLS = 20


def state(run: Path) -> dict[str, Any]:
    """All that a run leaves but its seconds: metrics of every step, files of the model and of every checkpoint."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    files = [path for part in ("final", "checkpoints") for path in sorted((run / part).rglob("*")) if path.is_file()]
    return {
        "metrics": without_times(lines),
        **{path.relative_to(run).as_posix(): path.read_bytes() for path in files},
    }


def test_twenty_kills_leave_no_trace(make_config: Any, tmp_path: Path) -> None:
    """Bit for bit: metrics, weights, moments, order of prompts, seeds of samples. Guards half-written checkpoints,
    lines of steps that are done again, random state that is no function of the step, and rests of killed writes."""
    config = make_config(
        steps=12, save_every=1, keep_checkpoints=3, rollout={"think_tokens": 4}, watch={"report_every": 0}
    )
    path = tmp_path / "config.json"
    path.write_text(json.dumps(dataclasses.asdict(config)))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed_training.py")), str(tmp_path), str(path), str(KILLS)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    undisturbed = state(tmp_path / "undisturbed")
    assert len(undisturbed["metrics"]) == 12
    killed = [folder for folder in tmp_path.glob("killed-*") if folder.is_dir()]
    assert killed
    for folder in killed:
        found = state(folder)
        different = [name for name in found.keys() | undisturbed.keys() if found.get(name) != undisturbed.get(name)]
        assert not different, (folder.name, different, found["metrics"][-1], undisturbed["metrics"][-1])
    for folder in killed:
        assert len(list((folder / "checkpoints").iterdir())) == 3
