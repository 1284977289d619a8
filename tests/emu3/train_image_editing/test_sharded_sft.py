"""Fine-tuning under DeepSpeed, on two gloo ranks, with the JSON files that GPUs get: against one process, and resumed.

Guards a path that only GPU nodes took: it ended before its first step, and with wrong rotary angles had it not.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sft_world
import torch
from installed import skip_without
from safetensors.torch import load_file
from transformers import TrainingArguments
from warm_ranks import warm_ranks

from emu3.train_image_editing import sft
from emu3.train_image_editing.sft import SftArguments

skip_without("deepspeed")

ROOT = Path(__file__).parents[3]
JSON = {"zero3": ROOT / "scripts" / "zero3.json", "offload": ROOT / "scripts" / "zero3_offload.json"}
SCHEDULE: dict[str, Any] = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-3}}
ALL_LOGITS, A_FEW_ROWS = 2**27, 2**13
"""Bytes of a chunk of the head's logits."""

RUNS: dict[str, dict[str, Any]] = {
    "zero3-fp32": {},
    "zero3-bf16": {"bf16": True},
    "zero3-polynomial": {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1e-3}},
    "zero3-recomputed": {"gradient_checkpointing": True, "chunk_bytes": A_FEW_ROWS},
    "zero3-dropout": {"dropout": 0.3, "gradient_checkpointing": True},
    "zero3-lora": {"lora_rank": 4, "lora_alpha": 8.0},
    "offload-fp32": {},
    "offload-bf16": {"bf16": True},
}
# What scripts/ie_sft.sh says; 12 copies of 24 rows make two steps of 128 a pass.
SCRIPT: dict[str, Any] = {
    "bf16": True, "dropout": 0.1, "coefficients": [12.0], "image_area": 384, "max_position_embeddings": 256,
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 16, "gradient_checkpointing": True,
    "num_train_epochs": 5, "learning_rate": 1e-4, "lr_scheduler_kwargs": {"min_lr": 1e-6}, "warmup_steps": 30,
    "adam_beta1": 0.9, "adam_beta2": 0.95, "adam_epsilon": 1e-6, "max_grad_norm": 5.0, "save_total_limit": 2,
}  # fmt: skip
RUNS |= {"zero3-script": SCRIPT, "offload-script": SCRIPT}
OWN = ("dropout", "lora_rank", "lora_alpha", "coefficients", "image_area", "max_position_embeddings")
RESUMED = ("zero3-fp32", "zero3-bf16", "zero3-dropout", "zero3-lora", "offload-fp32", "offload-bf16")


def run_of(world: Path, name: str, folder: Path, ranks: int = 2, **changes: Any) -> dict[str, Any]:
    """What `sharded_sft` reads of a run of 4 steps of 8 rows each that saves after 2; two micro-batches a step."""
    values = SCHEDULE | RUNS[name] | changes
    chunk = values.pop("chunk_bytes", ALL_LOGITS)
    own = {key: values.pop(key) for key in list(values) if key in OWN}
    training = {
        "output_dir": str(folder), "use_cpu": True, "max_steps": 4, "learning_rate": 5e-3, "logging_steps": 1,
        "per_device_train_batch_size": 4 // ranks, "gradient_accumulation_steps": 2, "weight_decay": 0.1,
        "save_strategy": "steps", "save_steps": 2, "warmup_steps": 1, "disable_tqdm": True,
        "deepspeed": str(JSON[name.partition("-")[0]]), **values,
    }  # fmt: skip
    arguments = {"model_name_or_path": str(world / "model"), "train_data": [str(world / "train")], **own}
    return {"sft": arguments, "training": training, "chunk_bytes": chunk}


def launch(runs: list[dict[str, Any]], ranks: int, folder: Path) -> None:
    path = folder / f"runs-{ranks}.json"
    path.write_text(json.dumps(runs))
    done = warm_ranks(ranks, str(Path(__file__).with_name("sharded_sft.py")), str(path))
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


def lines(folder: Path) -> list[dict[str, Any]]:
    """The run's log without what a clock or an operating system says."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = (
        "seconds",
        "memory_gb",
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
        "train_loss",
    )
    return [{key: value for key, value in entry.items() if key not in timed} for entry in entries]


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in lines(folder) if "loss" in entry]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    sft_world.model_folder(folder)
    sft_world.data(folder / "train", sft_world.edits(24))
    return folder


@pytest.fixture(scope="module")
def sharded(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run twice, whole and in two parts, on two ranks; and a part of one that a single rank takes up."""
    folder = tmp_path_factory.mktemp("sharded")
    runs = [run_of(world, name, folder / name) for name in RUNS]
    for name in RESUMED:
        # The schedule is that of four steps: a part is a run that was stopped, not one that was meant to be short.
        parts = run_of(world, name, folder / f"{name}-parts")
        runs += [{**parts, "stop_after": 2}, parts]
    runs.append({**run_of(world, "zero3-fp32", folder / "fewer"), "stop_after": 2})
    runs.append({**run_of(world, "zero3-fp32", folder / "full"), "no_room_for": "checkpoint-2"})
    launch(runs, 2, folder)
    launch([run_of(world, "zero3-fp32", folder / "fewer", ranks=1)], 1, folder)
    return folder


@pytest.fixture(scope="module")
def plain(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs in this process, without DeepSpeed, in float32."""
    folder = tmp_path_factory.mktemp("plain")
    for name in ("zero3-fp32", "zero3-lora", "zero3-polynomial"):
        run = run_of(world, name, folder / name, ranks=1)
        run["training"].pop("deepspeed")
        training = TrainingArguments(**run["training"], dataloader_pin_memory=False)
        sft.train(SftArguments(**run["sft"]), training)
    return folder


@pytest.mark.parametrize(
    ("name", "one", "tolerance"),
    [
        # float32 sums in another order; a wrong factor (mean for sum, a rank left out) is 50% or more.
        ("zero3-fp32", "zero3-fp32", 1e-4),
        ("offload-fp32", "zero3-fp32", 1e-4),
        ("zero3-recomputed", "zero3-fp32", 1e-4),
        ("zero3-polynomial", "zero3-polynomial", 1e-4),
        ("zero3-lora", "zero3-lora", 1e-4),
        # Weights and activations have 8 bits: 0.4% each, random over the tokens of a mean.
        ("zero3-bf16", "zero3-fp32", 5e-3),
        ("offload-bf16", "zero3-fp32", 5e-3),
    ],
)
def test_two_sharded_ranks_take_the_steps_of_one_process(
    sharded: Path, plain: Path, name: str, one: str, tolerance: float
) -> None:
    """Losses, rates, and norms before clipping; the offloaded runs have to decay the same weights."""
    ours, theirs = lines(sharded / name), lines(plain / one)
    for entry, expected in zip(ours[:4], theirs[:4], strict=True):
        assert entry["loss"] == pytest.approx(expected["loss"], rel=tolerance)
        assert entry["learning_rate"] == pytest.approx(expected["learning_rate"], rel=1e-9)
        assert entry["grad_norm"] == pytest.approx(expected["grad_norm"], rel=10 * tolerance)
        assert entry["tokens"] == expected["tokens"]


@pytest.mark.parametrize("name", ["zero3-fp32", "offload-fp32", "zero3-lora"])
def test_the_final_model_is_that_of_one_process(sharded: Path, plain: Path, name: str) -> None:
    ours = load_file(sharded / name / "final" / "model.safetensors")
    theirs = load_file(plain / name.replace("offload", "zero3") / "final" / "model.safetensors")
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_numbers_have_the_precision_that_they_need(sharded: Path, name: str) -> None:
    """Under ZeRO-3 a model is made in a place where new tensors get the dtype of its weights, rotary frequencies too,
    and gradients were added up over micro-batches in bfloat16."""
    seen = json.loads((sharded / name / "seen.json").read_text())
    assert (seen["rotary"], seen["rotary_error"]) == ("torch.float32", 0.0)
    assert seen["accumulated"] == "torch.float32"
    assert seen["weights"] == ["torch.bfloat16" if "bf16" in name or "script" in name else "torch.float32"]
    assert seen["decays"] == [0.1, 0.0] or "lora" in name
    assert seen["sharded"] > 0


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_equals_one_that_never_stopped(sharded: Path, name: str) -> None:
    """Bit for bit: moments and master weights are put together from shards and taken apart again, the rate comes from
    the schedule, dropout from the step."""
    assert lines(sharded / name) == lines(sharded / f"{name}-parts")
    files = [sharded / folder / "final" / "model.safetensors" for folder in (name, f"{name}-parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_goes_on_with_another_number_of_ranks(sharded: Path) -> None:
    """DeepSpeed's own checkpoints are pickles of each rank's shards."""
    assert losses(sharded / "fewer") == pytest.approx(losses(sharded / "zero3-fp32"), rel=1e-4)


@pytest.mark.parametrize(("script", "name"), [("ie_sft.sh", "zero3-script"), ("ie_sft_offload.sh", "offload-script")])
def test_the_scripts_survive_a_kill(sharded: Path, world: Path, tmp_path: Path, script: str, name: str) -> None:
    """What a GPU node runs, but for model, data, device and the counts of steps and saves. Killed when it has saved, it
    goes on as the run that nobody disturbed."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
        "MODEL_PATH": str(world / "model"), "DATAPATH": str(world / "train"), "COEF": "12", "OUTPUT_DIR": str(tmp_path),
        "EXP_NAME": name, "GPUS": "2", "IMAGE_AREA": "384", "MAX_POS_EMB": "256",
    }  # fmt: skip
    command = ["bash", str(ROOT / "scripts" / script), "--use_cpu", "--max_steps", "4", "--save_steps", "2"]
    # A machine may be too busy to see the checkpoint before the run ends: then once more.
    while not (tmp_path / name).exists() or (tmp_path / name / "final").exists():
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        with (tmp_path / "log").open("w") as log:
            killed = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            deadline = time.monotonic() + 900
            while not (tmp_path / name / "checkpoint-2").exists():
                assert killed.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.001)
            os.killpg(killed.pid, signal.SIGKILL)
            killed.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "continuing from" in done.stdout
    assert lines(tmp_path / name) == lines(sharded / name)
    files = [folder / name / "final" / "model.safetensors" for folder in (sharded, tmp_path)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_full_disk_costs_a_checkpoint_and_no_run(sharded: Path) -> None:
    """The rank that writes left; the others waited for it in the optimizer's state for ever."""
    assert sorted(path.name for path in (sharded / "full").glob("checkpoint-*")) == ["checkpoint-4"]
    assert not list((sharded / "full").glob(".*"))
    assert losses(sharded / "full") == losses(sharded / "zero3-fp32")


def test_dropout_changes_what_is_learned(sharded: Path) -> None:
    """Rounding moves a first loss in the seventh digit."""
    assert losses(sharded / "zero3-dropout")[0] != pytest.approx(losses(sharded / "zero3-fp32")[0], rel=1e-5)


def test_no_pickle_is_written(sharded: Path) -> None:
    kinds = {path.suffix for name in RUNS for path in (sharded / name).rglob("*") if path.is_file()}
    assert kinds <= {".json", ".jsonl", ".safetensors", ".tiktoken", ".txt", ".html"}
