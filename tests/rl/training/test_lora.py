"""LoRA in the trainer: what is trained, what leaves the run, what the reference is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from installed import skip_without
from safetensors.torch import load_file
from tiny_run import without_times

from emu3.mllm.language_model import load_language_model
from emu3.training.state import add_lora, merged

skip_without("peft")

LORA = {"rank": 4, "alpha": 8.0}


def trained_model(world: Path) -> tuple[Any, Any]:
    """A model with adapters that do something."""
    model = load_language_model(world / "model")
    adapted = add_lora(model, **LORA, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model, adapted


def test_merged_weights_are_the_adapted_model(world: Path) -> None:
    """Guards a checkpoint, or a sampler elsewhere, that lacks the adapters or has them twice."""
    model, adapted = trained_model(world)
    ids = torch.arange(20)[None]
    logits = model(ids).logits
    plain = load_language_model(world / "model")
    with adapted.disable_adapter():
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=0, atol=0)
    plain.load_state_dict(dict(merged(model)))
    torch.testing.assert_close(plain(ids).logits, logits, rtol=1e-4, atol=1e-5)


def test_the_policy_without_adapters_is_the_reference(make_config: Any, run: Any) -> None:
    """`adapter_off` costs no second model and gives the KL of one."""
    config = make_config(steps=3, lora=LORA, objective={"kl": 0.5}, optimizer={"lr": 3e-2})
    off = dataclasses.replace(
        config, run_name="off", compute=dataclasses.replace(config.compute, reference="adapter_off")
    )
    one, other = run(config), run(off)
    assert one[-1]["kl"] > 1e-4
    for first, second in zip(one, other, strict=True):
        assert first["kl"] == pytest.approx(second["kl"], rel=1e-3, abs=1e-7)
        assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-3)


def test_resumed_run_equals_an_uninterrupted_one(make_config: Any, run: Any, tmp_path: Path, world: Path) -> None:
    """Bit for bit; a checkpoint holds adapters instead of the model, and the end is a whole, changed model."""
    config = make_config(steps=4, save_every=2, lora=LORA, optimizer={"lr": 3e-2})
    whole = run(dataclasses.replace(config, run_name="whole"))
    run(dataclasses.replace(config, run_name="parts", steps=2))
    resumed = run(dataclasses.replace(config, run_name="parts"))
    assert without_times(resumed) == without_times(whole)
    checkpoint = tmp_path / "parts" / "checkpoints" / "step_000002"
    assert (checkpoint / "adapter.safetensors").is_file() and not (checkpoint / "model").exists()
    ours, theirs = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("parts", "whole"))
    start = load_file(world / "model" / "model.safetensors")
    assert ours.keys() == start.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in start)
    moved = {name for name in start if not torch.equal(ours[name], start[name])}
    assert moved == {name for name in start if "_proj." in name}
