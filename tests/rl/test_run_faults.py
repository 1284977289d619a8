"""What a run does when something that it stands on gives way. The judge has more in tests/rl/reward."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from emu3.errors import UserError
from emu3.mllm.language_model import load_language_model, save_checkpoint
from emu3.mllm.text_tokenizer import TextTokenizer
from rl import checkpoint

FULL = [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")]


def failing(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception, calls: set[int]) -> None:
    """Let the calls with these numbers of a function of `rl.checkpoint` fail."""
    write, count = getattr(checkpoint, name), 0

    def attempt(*arguments: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        if count - 1 in calls:
            raise error
        write(*arguments, **options)

    monkeypatch.setattr(checkpoint, name, attempt)


@pytest.mark.parametrize("error", FULL, ids=["OSError", "SafetensorError"])
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    make_config: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, error: Exception
) -> None:
    """The second of four checkpoints is not written: the run says so and goes on, the older one stays, nothing is
    left of the broken one, and the result is the same."""
    config = make_config(steps=4, save_every=1, keep_checkpoints=9)
    undisturbed = run(dataclasses.replace(config, run_name="undisturbed"))
    failing(monkeypatch, "save_checkpoint", error, {1})
    lines = run(config)
    assert "no checkpoint of step 2: " in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step_000001",
        "step_000003",
        "step_000004",
    ]
    assert [line["reward"] for line in lines] == [line["reward"] for line in undisturbed]


def test_a_full_disk_at_the_end_is_an_error_that_can_be_mended(
    make_config: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result itself is not written: the same command writes it, without a step being done again."""
    config = make_config(steps=2, save_every=1)
    with monkeypatch.context() as patch:
        failing(patch, "save_checkpoint", FULL[0], {2})
        with pytest.raises(UserError, match=r"final was not written: .*No space left"):
            run(config)
    assert not (tmp_path / "run" / "final").exists()
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    run(config)
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_weights_that_are_not_finite_end_the_run_in_one_line(
    make_config: Any, run: Any, world: Path, tmp_path: Path
) -> None:
    """A NaN must not become a token, a reward, or a checkpoint."""
    model = load_language_model(world / "model")
    with torch.no_grad():
        model.lm_head.weight[-1] = torch.nan
    save_checkpoint(model, TextTokenizer.from_pretrained(world / "model"), tmp_path / "broken")
    with pytest.raises(UserError, match=r"step 0: .*not finite"):
        run(make_config(model=str(tmp_path / "broken")))
    assert not (tmp_path / "run" / "checkpoints").exists()
