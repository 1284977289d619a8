"""Runs sharded by DeepSpeed on two gloo ranks against whole ones on one rank.

All sharded runs are made by the same two processes: importing DeepSpeed takes longer than ten steps of them.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from installed import skip_without
from safetensors.torch import load_file, save_file
from tiny_run import config_of, run_ranks, without_times
from warm_ranks import warm_ranks

from emu3.errors import UserError
from emu3.mllm.language_model import load_language_model
from emu3.training import state
from rl.check_configs import CONFIGS
from rl.config import Config
from rl.config_file import STAND_INS, load_config

skip_without("deepspeed")

COMPARED = ("reward", "kl", "entropy", "grad_norm", "loss", "logprob_gap")
SETTINGS: dict[str, dict[str, Any]] = {
    "zero2": {"zero": 2},
    "zero3": {"zero": 3, "reference": "sharded"},
    "recomputed": {"zero": 3, "reference": "offloaded", "gradient_checkpointing": True},
    "offloaded": {"zero": 2, "offload_optimizer": True},
}


def shipped(**changes: Any) -> dict[str, Any]:
    """`compute` of the paper's runs on GPUs."""
    with mock.patch.dict(os.environ, STAND_INS):
        return {**dataclasses.asdict(load_config(CONFIGS / "earl.jsonnet").compute), **changes}


RESUMED: dict[str, dict[str, Any]] = {
    "two": {"compute": {"zero": 2}},
    "three": {"compute": {"zero": 3}},
    "shipped": {"compute": shipped()},
    "shipped-three": {"compute": shipped(zero=3, reference="sharded")},
    "shipped-offload": {"compute": shipped(offload_optimizer=True)},
    "lora": {"compute": {"zero": 3, "reference": "adapter_off"}, "lora": {"rank": 4, "alpha": 8.0}},
}
Lines = list[dict[str, Any]]


def equal_config(world: Path, folder: Path, name: str, compute: dict[str, Any]) -> Config:
    """Three prompts on two ranks make unequal numbers of micro-batches, thinking unequal lengths. eps: or a gradient of
    the size of its sums' rounding would move its weight by a whole step of either sign."""
    changes: dict[str, Any] = {"rollout": {"think_tokens": 6}, "objective": {"kl": 0.1, "updates": 2}}
    changes |= {"optimizer": {"eps": 1e-6}, "compute": compute}
    return config_of(world, folder, run_name=name, steps=3, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def runs(world: Path, folder: Path) -> dict[str, Lines]:
    """The lines of every sharded run, by name."""
    configs = [equal_config(world, folder, name, compute) for name, compute in SETTINGS.items()]
    for name, changes in RESUMED.items():
        whole = config_of(world, folder, run_name=f"{name}-whole", steps=4, save_every=2, **changes)
        parts = dataclasses.replace(whole, run_name=f"{name}-parts")
        configs += [whole, dataclasses.replace(parts, steps=2), parts]
    lines = run_ranks(2, configs)
    return {config.run_name: found for config, found in zip(configs, lines, strict=True)}


def assert_same(one: Lines, other: Lines, tolerance: float = 1e-4) -> None:
    """1e-4: float32 sums in another order differ by about 1e-6 per step, and AdamW, which divides by the root of a
    small second moment, hands that on enlarged; a wrong factor (mean for sum, a rank left out) is 50% or more."""
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        for key in COMPARED:
            assert first[key] == pytest.approx(second[key], rel=tolerance, abs=tolerance / 100), (first["step"], key)


@pytest.fixture(scope="module")
def plain(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    folder = tmp_path_factory.mktemp("plain")
    return folder, equal_config(world, folder, "run", {})


@pytest.mark.parametrize("name", SETTINGS)
def test_two_sharded_ranks_equal_one_whole(
    runs: dict[str, Lines], name: str, run: Any, plain: tuple[Path, Config], folder: Path
) -> None:
    """Guards the passes that only keep step, the global denominator, sums that DeepSpeed turns into means, and the
    copy that samples."""
    plain_folder, config = plain
    assert_same(runs[name], run(config))
    ours = load_file(folder / name / "final" / "model.safetensors")
    theirs = load_file(plain_folder / "run" / "final" / "model.safetensors")
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_run_equals_an_uninterrupted_one(runs: dict[str, Lines], name: str, folder: Path) -> None:
    """Bit for bit: guards moments, step count and master weights that are put together from shards and taken apart
    again, and the adapters, which have a file of their own."""
    whole, parts = runs[f"{name}-whole"], runs[f"{name}-parts"]
    assert without_times(whole) == without_times(parts)
    files = [folder / f"{name}-{kind}" / "final" / "model.safetensors" for kind in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_state_is_by_parameter_and_not_by_rank(runs: dict[str, Lines], run: Any, world: Path, folder: Path) -> None:
    """What two ranks wrote one rank takes up, and goes on as if it had been one rank from the start."""
    config = config_of(world, folder, run_name="three-parts", steps=6, save_every=2, compute={"zero": 3})
    one = config_of(world, folder, run_name="one", steps=6)
    (lines,) = run_ranks(1, [config])
    assert_same(lines, run(one))


def test_every_rank_writes_its_share(runs: dict[str, Lines], folder: Path) -> None:
    """One rank wrote 119 GB while the others waited. The first has the model as well."""
    checkpoint = folder / "two-whole" / "checkpoints" / "step_000004"
    names = sorted(path.name for path in checkpoint.glob("optimizer-*"))
    assert names == ["optimizer-000-00000.safetensors", "optimizer-001-00000.safetensors"]
    first, second = (sum(tensor.nbytes for tensor in load_file(checkpoint / name).values()) for name in names)
    model = load_file(checkpoint / "model" / "model.safetensors").values()
    largest = max(tensor.nbytes for tensor in load_file(checkpoint / names[1]).values())
    assert abs(first + sum(tensor.nbytes for tensor in model) - second) <= largest


def test_state_of_other_parameters_is_refused(runs: dict[str, Lines], folder: Path, tmp_path: Path) -> None:
    """Before anything is set: half a state would train on as if it were whole."""
    run = folder / "two-whole"
    model = load_language_model(run / "final")
    parts = [load_file(path) for path in sorted((run / "checkpoints" / "step_000004").glob("optimizer-*.safetensors"))]
    tensors = {name: tensor for part in parts for name, tensor in part.items()}
    assert tensors["step"].item() == 4 and len(tensors) == sum(map(len, parts))
    assert {name.rpartition("/")[2] for name in tensors} == {"step", "master", "exp_avg", "exp_avg_sq"}
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("model.norm.weight")}
    save_file(rest, tmp_path / "optimizer-000-00000.safetensors")
    with pytest.raises(UserError, match="belongs to an optimizer of other parameters"):
        state.load_sharded(tmp_path, None, model)


@pytest.fixture(scope="module")
def facts(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of a trainer of each stage in bfloat16."""
    folder = tmp_path_factory.mktemp("facts")
    paths = [folder / f"{stage}.json" for stage in (2, 3)]
    for stage, path in zip((2, 3), paths, strict=True):
        config = config_of(world, folder, compute={"zero": stage, "precision": "bf16"})
        path.write_text(json.dumps(dataclasses.asdict(config)))
    script = Path(__file__).with_name("sharded_facts.py")
    done = warm_ranks(0, str(script), *map(str, paths))
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_rotary_frequencies_stay_exact(facts: list[dict[str, Any]]) -> None:
    """In bfloat16 tokens would stand at wrong angles, the further back the wronger. DeepSpeed cast buffers with the
    weights until it learned to leave them, and under `deepspeed.zero.Init`, which is not used here, it still does."""
    for one in facts:
        assert one["buffers"] and one["rotary"] and one["weights"] == ["torch.bfloat16"]


def test_a_broken_gradient_is_no_step(facts: list[dict[str, Any]]) -> None:
    """DeepSpeed has -1 for a norm that is not finite in places: the run would take it for a number and go on."""
    assert [(one["norm"], one["kept"]) for one in facts] == [("inf", True)] * 2
