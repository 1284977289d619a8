"""The small runs: what they start, and what they say of runs that fail."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from warm_ranks import warm_ranks

from emu3.errors import UserError
from emu3.mllm.language_model import load_language_model, save_checkpoint
from emu3.mllm.text_tokenizer import TextTokenizer
from rl.check_node import runs
from rl.check_node.check import ROOT, Node, Skipped
from rl.check_node.machine import paper_config
from rl.config_file import load_config
from rl.rollout import engine as rollout_engine

NODE = Node(0, Path("runs"), None)
EIGHT = dataclasses.replace(NODE, gpus=8)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    runs.make_world(folder)
    return folder


def test_a_small_run_has_the_shipped_settings(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a check that passes while what users start is another thing."""
    for name in ("APP__RUN_NAME", "APP__BASE_EXP_DIR", "APP__REWARD_FUNCTION_API_BASE"):
        monkeypatch.setenv(name, "http://127.0.0.1:1/v1")
    small = load_config(runs.write_config(world, "http://127.0.0.1:1/v1", "vllm", 4))
    shipped = paper_config()
    assert small.compute == dataclasses.replace(shipped.compute, micro_batch=4)
    assert small.objective == shipped.objective and small.rollout.vllm == shipped.rollout.vllm
    assert small.compute.zero == 2 and small.compute.precision == "bf16"


class Trained:
    """Stands in for `command`: notes what is started and leaves what training would."""

    def __init__(self, world: Path, lines: list[dict[str, Any]], moved: bool = True) -> None:
        self.world, self.lines, self.moved = world, lines, moved
        self.started: list[tuple[list[str], dict[str, str]]] = []

    def __call__(self, arguments: list[str], seconds: float, **variables: str) -> str:
        self.started.append((arguments, variables))
        run = Path(variables.get("OUTPUT_DIR") or variables["APP__BASE_EXP_DIR"]) / "run"
        run.mkdir(exist_ok=True)
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        model = load_language_model(self.world / "model")
        if self.moved:
            with torch.no_grad():
                model.lm_head.weight += 1
        save_checkpoint(model, TextTokenizer.from_pretrained(self.world / "model"), run / "final")
        return f"run: step {len(self.started) - 1} of {len(self.started)}; 0 rows too long"


LOSSES: list[dict[str, Any]] = [{"loss": 5.0, "step": 1}, {"loss": 4.0, "step": 2}, {"train_runtime": 1.0, "step": 2}]
STEPS: list[dict[str, Any]] = [
    {"step": step, "logprob_gap": 1e-3, "grad_norm": 1.0, "probe_gap": None} for step in (0, 1)
]


def test_sft_is_the_script_on_every_gpu(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On 6 GPUs 4 of them: the script's batch of 128 has to be cut evenly."""
    trained = Trained(world, LOSSES)
    monkeypatch.setattr(runs, "command", trained)
    for gpus, ranks, on_cpu in ((0, "2", True), (8, "8", False), (6, "4", False), (1, "1", False)):
        line, facts = runs.sft(dataclasses.replace(NODE, gpus=gpus))
        assert facts["losses"] == [5.0, 4.0] and line.startswith(f"{ranks} ranks, ZeRO-3 in bf16")
        arguments, variables = trained.started[-1]
        assert arguments[:2] == ["bash", str(ROOT / "scripts" / "ie_sft.sh")]
        assert variables["GPUS"] == ranks and Path(variables["DEEPSPEED"]).is_file()
        assert ("--use_cpu" in arguments) == on_cpu


@pytest.mark.parametrize(
    ("lines", "moved", "message"),
    [
        ([{"loss": float("nan")}, {"loss": 4.0}], True, "have to be finite"),
        (LOSSES[:1], True, r"2 steps left the metrics \[5.0\]"),
        (LOSSES, False, "the optimizer did nothing"),
    ],
)
def test_sft_that_went_wrong(
    world: Path, monkeypatch: pytest.MonkeyPatch, lines: list[dict[str, Any]], moved: bool, message: str
) -> None:
    monkeypatch.setattr(runs, "command", Trained(world, lines, moved))
    with pytest.raises(UserError, match=message):
        runs.sft(NODE)


def test_rl_is_the_script_twice(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = Trained(world, STEPS)
    monkeypatch.setattr(runs, "command", trained)
    line, facts = runs.rl(EIGHT)
    assert line.startswith("8 ranks, ZeRO-2 in bf16") and facts["gaps"] == [1e-3, 1e-3]
    assert [arguments[-1] for arguments, _ in trained.started] == ["steps=1", "steps=2"]
    assert all(variables["RANKS"] == "8" for _, variables in trained.started)


def test_rl_that_went_wrong(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that began anew where it should have gone on ends well, too."""
    trained = Trained(world, STEPS[:1])
    monkeypatch.setattr(runs, "command", trained)
    with pytest.raises(UserError, match=r"left the steps \[0\]"):
        runs.rl(NODE)
    monkeypatch.setattr(runs, "command", lambda *_, **__: "run: step 0 of 1; 0 rows too long")
    with pytest.raises(UserError, match="did not go on from its checkpoint of step 1"):
        runs.rl(NODE)


def test_full_size_takes_the_first_way_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {
        "ranks": 4, "pass_seconds": 2.0, "step_seconds": 0.5, "tokens": 9580, "finite": True, "peak_bytes": 50 * 10**9,
    }  # fmt: skip
    started: list[list[str]] = []

    def told(arguments: list[str], seconds: float) -> str:
        started.append(arguments)
        Path(arguments[7]).write_text(json.dumps(facts))
        return ""

    class Properties:
        total_memory = 85 * 10**9

    monkeypatch.setattr(runs, "command", told)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    line, _ = runs.full_size(dataclasses.replace(NODE, gpus=4))
    assert line.startswith("ZeRO-2 on 4 GPUs: 2.0 s for 9580 tokens") and "peak 50.0 GB, estimated" in line
    facts["peak_bytes"] = 25 * 10**9  # the optimizer and the gradients are in main memory
    runs.full_size(dataclasses.replace(NODE, gpus=1))
    saving = ("lora", "offload_optimizer", "compute.offload_optimizer")
    assert [any(part.startswith(saving) for part in arguments) for arguments in started] == [False, True]
    Properties.total_memory = 10 * 10**9
    with pytest.raises(Skipped, match="too few"):
        runs.full_size(dataclasses.replace(NODE, gpus=1))
    Properties.total_memory = 85 * 10**9
    facts["peak_bytes"] = 84 * 10**9
    with pytest.raises(UserError, match="the estimate is too low"):
        runs.full_size(dataclasses.replace(NODE, gpus=4))
    facts["finite"] = False
    with pytest.raises(UserError, match="not finite"):
        runs.full_size(dataclasses.replace(NODE, gpus=4))
    with pytest.raises(Skipped, match="takes GPUs"):
        runs.full_size(NODE)


def test_what_is_not_installed_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for check in (runs.sft, runs.rl):
        with pytest.raises(Skipped, match="DeepSpeed is not installed"):
            check(NODE)
    with pytest.raises(Skipped, match="vLLM is not installed"):
        runs.sampler(NODE)


def test_a_lock_that_was_left_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a run that waits for ever, without a word, for a build of DeepSpeed's that was killed."""
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert runs.stale_lock() is None, "somebody builds"
    os.utime(lock, (0, 0))
    with pytest.raises(UserError, match=r"deepspeed_shm_comm/lock is there since \d+ min"):
        runs.rl(NODE)


class Sampler:
    """Stands in for vLLM's engine: answers with grids of `shape`; `sync` raises what it is given."""

    probe_gap = 1e-3

    def __init__(self, shape: tuple[int, int], error: UserError | None = None) -> None:
        self.shape, self.error = shape, error

    def sample(self, prompts: list[Any], seeds: list[Any]) -> list[list[Any]]:
        return [[SimpleNamespace(codes=np.zeros(self.shape))] * len(seeds[0])]

    def sleep(self) -> None:
        pass

    def sync(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (Sampler((3, 3)), "left the grammar"),
        (Sampler((runs.HEIGHT, runs.WIDTH), UserError("they do not hold the same weights")), "the same weights"),
    ],
)
def test_vllm_that_goes_wrong(monkeypatch: pytest.MonkeyPatch, engine: Sampler, message: str) -> None:
    """One that samples what is no grid, and one that wakes up with its old weights."""
    monkeypatch.setattr(runs, "check_installed", lambda: None)
    monkeypatch.setattr(rollout_engine, "make_engine", lambda *_: engine)
    for name in ("APP__RUN_NAME", "APP__BASE_EXP_DIR", "APP__DATA_DIR", "APP__REWARD_FUNCTION_API_BASE"):
        monkeypatch.setenv(name, "set by the check")
    with pytest.raises(UserError, match=message):
        runs.sampler(NODE)


def test_vllm_goes_round(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    line, facts = runs.sampler(NODE)
    assert len(facts["probe_gaps"]) == 2 and "wakes with new weights" in line


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ['lora={"rank": 4, "alpha": 4.0}', "compute.reference=adapter_off"]])
def test_the_step_at_full_size_runs_in_small(tmp_path: Path, extra: list[str]) -> None:
    """All of it but the size and the device: two ranks, ZeRO-2, bfloat16, gradient checkpointing."""
    pytest.importorskip("deepspeed")
    facts_file = tmp_path / "facts.json"
    step = ["-m", "rl.check_node.on_ranks", "step", str(facts_file), "--tiny", "compute.micro_batch=4", *extra]
    done = warm_ranks(2, *step)
    assert done.returncode == 0, done.stderr[-2000:]
    facts = json.loads(facts_file.read_text())
    assert facts["ranks"] == 2 and facts["finite"] and facts["grad_norm"] > 0 and facts["tokens"] > 100


def test_the_data_of_the_small_world_train(world: Path, tmp_path: Path) -> None:
    """scripts/ie_sft.sh takes them on one process without DeepSpeed, and the check finds its metrics."""
    settings = {"GPUS": "0", "PER_DEVICE": "2", "MODEL_PATH": str(world / "model"), "DATAPATH": str(world / "data")}
    settings |= {"IMAGE_AREA": str(runs.AREA), "MAX_POS_EMB": "256", "OUTPUT_DIR": str(tmp_path), "EXP_NAME": "run"}
    flags = ["--max_steps", "2", "--save_steps", "2", "--gradient_accumulation_steps", "1"]
    script = str(shutil.copytree(ROOT / "scripts", tmp_path / "scripts") / "ie_sft.sh")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["bash", script, *flags], env={**os.environ, **settings, "PATH": path}, check=True, timeout=900)
    losses = [line["loss"] for line in runs._lines(tmp_path / "run") if "loss" in line]
    runs._trained(tmp_path / "run" / "final", world / "model", losses, 2)
