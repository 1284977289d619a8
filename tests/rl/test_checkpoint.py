"""Checkpoints: whole, verified, found again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from emu3.mllm.language_model import load_language_model
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.training.state import load_optimizer
from rl import checkpoint
from rl.training.policy import make_trainer


@pytest.fixture
def saved(make_config: Any, tmp_path: Path) -> Path:
    """A run with checkpoints of steps 1, 2 and 3, of which the newest two are kept."""
    config = make_config(keep_checkpoints=2)
    trainer, _ = make_trainer(config, Accelerator(cpu=True))
    tokenizer = TextTokenizer.from_pretrained(config.model)
    checkpoints = checkpoint.Checkpoints(tmp_path, trainer, tokenizer, config)
    for step in (1, 2, 3):
        for parameter in trainer.model.parameters():
            parameter.grad = torch.full_like(parameter, float(step))
        trainer.step(0.1)
        checkpoints.begin(step, 10 * step)
    checkpoints.finish()
    return tmp_path


def test_optimizer_comes_back_bit_for_bit(saved: Path) -> None:
    """Guards moments that are attached to other parameters, and a step count that starts again at 0. Gradients are
    clipped to a norm of 1 together, so the moments of equal gradients are equal."""
    found = checkpoint.newest(saved)
    assert found is not None and (found.step, found.prompt_position) == (3, 30)
    model = load_language_model(found.folder / "model")
    optimizer = torch.optim.AdamW(model.parameters(), lr=7.0, fused=True)
    load_optimizer(found.folder, model, optimizer)
    state = optimizer.state_dict()
    assert state["param_groups"][0]["lr"] == 0.1
    assert len(state["state"]) == len(list(model.parameters()))
    clipped = sum(parameter.numel() for parameter in model.parameters()) ** -0.5
    for index, parameter in enumerate(model.parameters()):
        moments = state["state"][index]
        assert moments["step"] == 3 and moments["exp_avg"].shape == parameter.shape
        expected = torch.full_like(parameter, (1 - 0.9**3) * clipped)
        torch.testing.assert_close(moments["exp_avg"], expected, rtol=1e-4, atol=0)


def test_only_the_newest_are_kept(saved: Path) -> None:
    assert sorted(path.name for path in (saved / "checkpoints").iterdir()) == ["step_000002", "step_000003"]


@pytest.mark.parametrize("fault", ["truncated weights", "flipped byte", "missing file", "no manifest"])
def test_a_broken_checkpoint_is_passed_over(saved: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards a resume from half a checkpoint, and one that silently starts again from nothing."""
    folder = saved / "checkpoints" / "step_000003"
    weights, moments = folder / "model" / "model.safetensors", folder / "optimizer.safetensors"
    if fault == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif fault == "flipped byte":
        content = bytearray(moments.read_bytes())
        content[-1] ^= 1
        moments.write_bytes(bytes(content))
    elif fault == "missing file":
        moments.unlink()
    else:
        (folder / "manifest.json").unlink()
    found = checkpoint.newest(saved)
    assert found is not None and found.step == 2
    assert "step_000003 is broken" in capsys.readouterr().out


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".step_000001.77.tmp").mkdir(parents=True)
    assert checkpoint.newest(tmp_path) is None
