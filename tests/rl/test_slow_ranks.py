"""A rank that takes longer for the judge or the disk than the device's group waits for a collective."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from installed import skip_without
from warm_ranks import warm_ranks

from rl.config import Config

skip_without("deepspeed")


def two_ranks(config: Config, what: str) -> subprocess.CompletedProcess[str]:
    path = Path(config.output_dir) / f"{what}.json"
    path.write_text(json.dumps(dataclasses.asdict(config)))
    return warm_ranks(2, str(Path(__file__).with_name("slow_ranks.py")), str(path), what)


@pytest.fixture
def config(make_config: Any) -> Config:
    """Sharded: the ranks that do not write help to gather the optimizer's state behind the model."""
    compute = {"zero": 2, "timeout": 15.0}
    return make_config(steps=3, save_every=1, keep_checkpoints=9, compute=compute)  # type: ignore[no-any-return]


def test_a_slow_judge_and_a_slow_disk_end_no_run(config: Config) -> None:
    """NCCL's watchdog did after ten minutes, in which rank 0 writes 119 GB to few disks; gloo's half hour hid it in
    every other test. And a full disk costs the checkpoint and not the run: the ranks that do not write went on to
    gather a state that rank 0 no longer took part in."""
    done = two_ranks(config, "host")
    assert done.returncode == 0, done.stderr[-2000:]
    run = Path(config.output_dir) / config.run_name
    assert [line for line in done.stdout.splitlines() if line.startswith("no checkpoint")] == [
        "no checkpoint of step 2: [Errno 28] No space left on device: 'model'; the run goes on without"
    ]
    # The first group, that of the host, and DeepSpeed's own.
    assert "timeouts of 3 groups: [15.0, 86400.0]" in done.stdout.splitlines()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_000001", "step_000003"]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
    assert (run / "final" / "model.safetensors").is_file()


def test_the_device_group_would_not_have_waited(config: Config) -> None:
    """That the test above can fail: with the same waits in the device's group the run ends at its slow judge."""
    whole = dataclasses.replace(config.compute, zero=0)  # it does not come as far as a checkpoint
    done = two_ranks(dataclasses.replace(config, compute=whole), "device")
    assert done.returncode != 0 and "another rank is gone" in done.stderr
    assert not (Path(config.output_dir) / config.run_name / "checkpoints").exists()
