"""`scripts/rl.sh` on two ranks under the settings that GPUs get: bfloat16, ZeRO-2, recomputed activations, a reference
in main memory, a judge behind HTTP. Only model, data, device, sampler and the counts of steps and saves are others."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from installed import skip_without
from PIL import Image
from stub_judge import StubJudge
from test_killed_training import state

skip_without("deepspeed")

ROOT = Path(__file__).parents[2]
CONFIG = "rl/configs/earl.jsonnet"
JUDGE = "Qwen/Qwen2.5-VL-72B-Instruct"


async def scores_of_pixels(body: dict[str, Any]) -> web.StreamResponse:
    """0 to 10, a function of the edited image."""
    url = body["messages"][0]["content"][-1]["image_url"]["url"]
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    pixels = np.asarray(image, dtype=np.float64)
    score = round(float(pixels[:, : pixels.shape[1] // 2].mean() / 25.5), 2)
    content = json.dumps({"reasoning": "as bright as it is", "score": [score, 9]})
    return web.json_response({"object": "chat.completion", "choices": [{"index": 0, "message": {"content": content}}]})


@pytest.fixture
def judge() -> Iterator[StubJudge]:
    stub = StubJudge()
    stub.models, stub.reply = [JUDGE], scores_of_pixels
    yield stub
    stub.close()


def start(world: Path, folder: Path, name: str, judge: StubJudge) -> subprocess.Popen[str]:
    changes = {
        "model": world / "model",
        "tokenizer": "null",
        "vision": world / "vision",
        "data": json.dumps({"sets": [str(world / "data")]}),
        "rollout.engine": "local",
        "steps": 4,
        "save_every": 2,
    }
    foreign = re.compile("APP__|SLURM_|MASTER_|NNODES|NODE_RANK|RANK|WORLD_SIZE|LOCAL_RANK|ADDRESS_FILE")
    environment = {key: value for key, value in os.environ.items() if not foreign.match(key)} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "RANKS": "2",
        "APP__RUN_NAME": name,
        "APP__BASE_EXP_DIR": str(folder),
        "APP__REWARD_FUNCTION_API_BASE": judge.url,
    }
    command = ["bash", "scripts/rl.sh", CONFIG, *(f"{key}={value}" for key, value in changes.items())]
    log = (folder / f"{name}.log").open("a")
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, text=True)


def finish(process: subprocess.Popen[str], log: Path) -> None:
    assert process.wait(1800) == 0, log.read_text()[-3000:]


def kill_all(process: subprocess.Popen[str]) -> None:
    """The launcher, which the script became, and its ranks, at once, as when a machine is lost."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
    doomed = {process.pid}
    while more := {child for child, parent in parents.items() if parent in doomed} - doomed:
        doomed |= more
    assert len(doomed) == 3, "expected a launcher and two ranks"
    for number in doomed:
        os.kill(number, signal.SIGKILL)
    process.wait(30)


@pytest.mark.slow
def test_killed_behind_a_checkpoint_it_goes_on_as_if_nothing_had_happened(
    world: Path, tmp_path: Path, judge: StubJudge
) -> None:
    """Bit for bit in every metric, weight and moment. Every other test of a run has other settings: float32, one
    process, a scorer in it, or no script."""
    checkpoint = tmp_path / "killed" / "checkpoints" / "step_000002"

    async def none_behind_the_checkpoint(body: dict[str, Any]) -> web.StreamResponse:
        while checkpoint.exists():
            await asyncio.sleep(3600)
        return await scores_of_pixels(body)

    first = StubJudge()  # of its own: however slow this process is to see the checkpoint, the run is no farther
    first.models, first.reply = [JUDGE], none_behind_the_checkpoint
    whole = start(world, tmp_path, "undisturbed", judge)
    killed = start(world, tmp_path, "killed", first)
    deadline = time.monotonic() + 1800
    while not checkpoint.exists():
        assert killed.poll() is None and time.monotonic() < deadline, (tmp_path / "killed.log").read_text()[-3000:]
        time.sleep(0.01)
    kill_all(killed)
    first.close()
    assert not (tmp_path / "killed" / "checkpoints" / "step_000004").exists()
    finish(whole, tmp_path / "undisturbed.log")
    finish(start(world, tmp_path, "killed", judge), tmp_path / "killed.log")
    assert "step 2 of 4" in (tmp_path / "killed.log").read_text()

    undisturbed = state(tmp_path / "undisturbed")
    assert state(tmp_path / "killed") == undisturbed
    config = json.loads((tmp_path / "killed" / "config.json").read_text())
    assert config["compute"] | {"precision": "bf16", "zero": 2, "reference": "offloaded"} == config["compute"]
    assert config["compute"]["gradient_checkpointing"] and config["objective"]["kl"] > 0
    for line in undisturbed["metrics"]:
        assert line["trained_tokens"] > 0 and line["kl"] is not None and line["grad_norm"] > 0
