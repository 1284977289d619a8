"""Flags of fine-tuning: the published ones, the Trainer's, and what is said of those that cannot work."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sft_world
from sft_runs import arguments, metrics

from emu3.errors import UserError
from emu3.mllm.language_model import load_language_model
from emu3.train_image_editing import sft
from emu3.train_image_editing.sft import SftArguments


def test_published_names_of_flags_are_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards the command of the published script, with both spellings of a flag and one line about all of them."""
    taken: list[Any] = []
    monkeypatch.setattr(sft, "train", lambda *arguments: taken.extend(arguments))
    flags = [
        "--model_name_or_path", "m", "--data_paths", "a", "b", "--validation_paths=c", "--output_dir", "o",
        "--eval_strategy", "steps", "--evaluation_strategy", "steps", "--random-seed", "7", "--attn_type", "fa2",
        "--lr_scheduler_type", "cosine_with_min_lr", "--min_learning_rate", "1e-5", "--use_cpu",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["sft", *flags])
    sft.main()
    ours, training = taken
    assert (ours.train_data, ours.eval_data) == (["a", "b"], ["c"])
    assert ours.attn_implementation == "flash_attention_2"
    assert (training.eval_strategy, training.data_seed, training.lr_scheduler_kwargs) == ("steps", 7, {"min_lr": 1e-5})
    [note] = capsys.readouterr().err.splitlines()
    assert note.startswith("note: --data_paths is --train_data here, --validation_paths is --eval_data here, ")


def test_chains_that_are_missing_are_told_and_a_run_of_before_goes_on(
    model: Path, train_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards runs from before rows without a chain could be plain edits: they left them out, and go on so or not."""
    training = sft_world.trainer_arguments(tmp_path / "out", max_steps=1)
    wanted = arguments(model, train_data, cot_keys=["reasoning_verbose"])
    sft.train(wanted, training)
    assert "24 rows, of which 16 without reasoning are plain edits" in capsys.readouterr().out
    file = tmp_path / "out" / sft.ARGUMENTS
    before = json.loads(file.read_text())
    assert before.pop("reasoning_missing") == "plain"
    file.write_text(json.dumps(before))
    with pytest.raises(UserError, match="reasoning_missing"):
        sft.train(wanted, training)
    sft.train(replace(wanted, reasoning_missing="drop"), training)


def test_the_command_takes_published_and_trainer_flags(
    model: Path, train_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--model_name_or_path", str(model), "--train_data", str(train_data), str(train_data),
        "--coefficients", "0.5", "1.5", "--cot_keys", "reasoning_verbose", "--eval_data", str(train_data),
        "--validation_size", "2", "--output_dir", str(tmp_path / "out"), "--max_steps", "2", "--use_cpu", "--bf16",
        "--per_device_train_batch_size", "2", "--eval_strategy", "steps", "--eval_steps", "1", "--logging_steps", "1",
        "--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr": 1e-5}',
        "--attn_implementation", "eager", "--image_area", "384", "--max_position_embeddings", "200",
        "--gradient_checkpointing", "True", "--save_strategy", "no", "--reasoning_missing", "drop",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["sft", *flags])
    sft.main()
    assert sum("eval_loss" in entry for entry in metrics(tmp_path / "out")) == 2
    assert load_language_model(tmp_path / "out" / "final").config.max_position_embeddings == 200
    assert "8 rows, dropped 16 without reasoning" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["sft", *flags, "--coefficient_typo", "1"])
    with pytest.raises(UserError, match="unknown option --coefficient_typo"):
        sft.main()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_data": ["nowhere"]}, "manifest.json does not exist"),
        ({"model_name_or_path": "nowhere"}, "nowhere"),
        ({"coefficients": [1.0, 2.0]}, "2 coefficients for 1"),
        ({"changed_token_weight": 0.0}, "--changed_token_weight: expected more than 0"),
        ({"image_area": 65536}, "image_area 384, expected 65536"),
        ({"attn_implementation": "fast"}, "--attn_implementation fast"),
        ({"validation_size": 0}, "--validation_size: expected at least 1, got 0"),
        ({"max_position_embeddings": 30}, "24 are longer than 30 tokens; --max_position_embeddings"),
    ],
)
def test_bad_input_is_one_clear_line(
    model: Path, train_data: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    values = {"model_name_or_path": str(model), "train_data": [str(train_data)]} | change
    with pytest.raises(UserError, match=message):
        sft.train(SftArguments(**values), sft_world.trainer_arguments(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "--lr_scheduler_kwargs"),
        ({"lr_scheduler_kwargs": {"min_lt": 1e-5}}, "--lr_scheduler_kwargs"),
        ({"resume_from_checkpoint": "nowhere"}, "nowhere is no folder"),
        ({"eval_strategy": "steps", "eval_steps": 1}, "needs --eval_data"),
    ],
)
def test_trainer_flags_that_cannot_work_are_one_clear_line(
    model: Path, train_data: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """The Trainer finds these only once everything is loaded and the first file is written, with a traceback."""
    with pytest.raises(UserError, match=message) as error:
        sft.train(arguments(model, train_data), sft_world.trainer_arguments(tmp_path / "out", **change))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
