"""Fine-tuning that stops and goes on: checkpoints are whole, hold no pickle, and change nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import sft_world
import torch
from sft_runs import arguments, losses, weights

from emu3.checkpoint_facts import model_origin, read_facts
from emu3.errors import UserError
from emu3.files import read_json, write_json
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.train_image_editing import sft
from emu3.train_image_editing.trainer import WHOLE, EditTrainer, last_whole_checkpoint


def test_a_resumed_run_equals_one_that_never_stopped(
    model: Path, train_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order, optimizer, schedule and metrics; one thread, so that sums have one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    values: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2}
    whole = sft.train(arguments(model, train_data), sft_world.trainer_arguments(tmp_path / "whole", **values))

    cut = tmp_path / "cut"
    plain_loss = EditTrainer.compute_loss

    def stop_in_step_six(self: EditTrainer, *inputs: Any, **options: Any) -> Any:
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return plain_loss(self, *inputs, **options)

    monkeypatch.setattr(EditTrainer, "compute_loss", stop_in_step_six)
    with pytest.raises(KeyboardInterrupt):
        sft.train(arguments(model, train_data), sft_world.trainer_arguments(cut, **values))
    monkeypatch.undo()
    assert len(losses(cut)) == 5
    torch.manual_seed(123)
    resumed = sft.train(arguments(model, train_data), sft_world.trainer_arguments(cut, **values))
    torch.set_num_threads(threads)

    assert losses(cut) == losses(tmp_path / "whole")
    ours, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # The Trainer's own setting for training made whoever loaded a checkpoint sample without a cache.
    for name in ("config.json", "generation_config.json"):
        found = [json.loads((Path(folder) / name).read_text()) for folder in (resumed, whole)]
        assert found[0] == found[1] and found[0].get("use_cache", True)


def test_a_checkpoint_that_was_cut_short_is_passed_over(model: Path, train_data: Path, tmp_path: Path) -> None:
    """The Trainer writes in place: a killed run leaves a folder with the highest step that cannot be loaded."""
    training = sft_world.trainer_arguments(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    sft.train(arguments(model, train_data), training)
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    TextTokenizer.from_pretrained(tmp_path / "checkpoint-4")
    optimizer = tmp_path / "checkpoint-4" / "optimizer.safetensors"
    optimizer.write_bytes(optimizer.read_bytes()[:-1])
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    (tmp_path / "checkpoint-2" / WHOLE).unlink()
    assert last_whole_checkpoint(tmp_path) is None


def test_another_run_in_the_output_folder_is_refused(model: Path, train_data: Path, tmp_path: Path) -> None:
    """It would continue from that run's checkpoint and be called by this one's name."""
    sft.train(arguments(model, train_data), sft_world.trainer_arguments(tmp_path, max_steps=1))
    with pytest.raises(UserError, match="another --output_dir"):
        sft.train(
            arguments(model, train_data, changed_token_weight=2.0), sft_world.trainer_arguments(tmp_path, max_steps=1)
        )


def test_a_resumed_run_keeps_its_rate(model: Path, train_data: Path, tmp_path: Path) -> None:
    """The schedule comes from the checkpoint, so another --learning_rate would be accepted and have no effect."""
    values: dict[str, Any] = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    sft.train(arguments(model, train_data), sft_world.trainer_arguments(tmp_path, **values))
    with pytest.raises(
        UserError,
        match=r"holds a run with learning_rate=.*, this one has learning_rate=0.5: choose another --output_dir",
    ):
        sft.train(
            arguments(model, train_data), sft_world.trainer_arguments(tmp_path, **{**values, "learning_rate": 0.5})
        )


def test_checkpoints_hold_no_pickle_and_old_ones_go(model: Path, train_data: Path, tmp_path: Path) -> None:
    """The Trainer's own are torch files and a pickle of its arguments."""
    values: dict[str, Any] = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    sft.train(arguments(model, train_data), sft_world.trainer_arguments(tmp_path, **values))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    for folder, steps in (("checkpoint-2", 2), ("checkpoint-3", 3), ("final", 3)):
        facts = read_facts(tmp_path / folder)
        assert facts is not None and facts.trained_from is not None
        assert (facts.objective, facts.steps, facts.image_area) == ("sft", steps, sft_world.MANIFEST["image_area"])
        assert facts.trained_from == model_origin(model)
        assert [origin.name for origin in facts.data] == [train_data.name]
    kinds = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert kinds <= {".html", ".json", ".jsonl", ".safetensors", ".tiktoken", ".txt"}


def test_the_old_checkpoint_stays_until_the_new_one_is_whole(
    model: Path, train_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit of 1, a run killed while it saved would have lost everything."""
    values: dict[str, Any] = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}

    def killed(path: Path, value: Any) -> None:
        if path.name == WHOLE and "checkpoint-2" in path.parent.name:
            raise KeyboardInterrupt
        write_json(path, value)

    monkeypatch.setattr("emu3.training.checkpoints.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        sft.train(arguments(model, train_data), sft_world.trainer_arguments(tmp_path, **values))
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-1"


def test_a_finished_run_needs_neither_model_nor_data(
    model: Path, train_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Called again after a cleaned disk it complained about its data."""
    start, data = shutil.copytree(model, tmp_path / "start"), shutil.copytree(train_data, tmp_path / "data")
    sft.train(arguments(start, data), sft_world.trainer_arguments(tmp_path / "run", max_steps=1))
    shutil.rmtree(start)
    shutil.rmtree(data)
    sft.train(arguments(start, data), sft_world.trainer_arguments(tmp_path / "run", max_steps=1))
    assert "nothing to do" in capsys.readouterr().out


def test_a_finished_run_does_nothing(
    model: Path, train_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It trained one more step and wrote `final` anew; with a rate that does not end at 0, another model."""
    values: dict[str, Any] = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    final = sft.train(arguments(model, train_data), sft_world.trainer_arguments(tmp_path, **values))
    before = (final / "model.safetensors").stat().st_mtime_ns
    sft.train(arguments(model, train_data), sft_world.trainer_arguments(tmp_path, **values))
    assert "nothing to do" in capsys.readouterr().out
    assert (final / "model.safetensors").stat().st_mtime_ns == before
    # Killed between its last checkpoint and `final`.
    weights_before = (final / "model.safetensors").read_bytes()
    shutil.rmtree(final)
    (tmp_path / sft.FINISHED).unlink()
    sft.train(arguments(model, train_data), sft_world.trainer_arguments(tmp_path, **values))
    assert len(losses(tmp_path)) == 2
    assert (final / "model.safetensors").read_bytes() == weights_before


def test_a_run_of_an_older_version_goes_on(model: Path, train_data: Path, tmp_path: Path) -> None:
    """Settings that it did not know had the values that are their defaults now."""
    values: dict[str, Any] = {
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "lr_scheduler_type": "constant",
    }
    sft.train(arguments(model, train_data), sft_world.trainer_arguments(tmp_path, **values))
    stored = read_json(tmp_path / sft.ARGUMENTS)
    new = ("dropout", "lora_rank", "lora_alpha", "early_stopping_patience")
    write_json(tmp_path / sft.ARGUMENTS, {name: value for name, value in stored.items() if name not in new})
    sft.train(arguments(model, train_data), sft_world.trainer_arguments(tmp_path, **{**values, "max_steps": 3}))
    assert len(losses(tmp_path)) == 3


def test_a_full_disk_costs_a_checkpoint_and_no_run(
    model: Path, train_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in reinforcement learning. Only `final` has to be written in the end."""
    plain = TextTokenizer.save_pretrained

    def full(self: TextTokenizer, folder: Path) -> None:
        if "checkpoint-2" in str(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        plain(self, folder)

    monkeypatch.setattr(TextTokenizer, "save_pretrained", full)
    values: dict[str, Any] = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    sft.train(arguments(model, train_data), sft_world.trainer_arguments(tmp_path / "run", **values))
    assert "no checkpoint of step 2" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir())
    assert names == ["checkpoint-1", "checkpoint-3", "final"]

    monkeypatch.setattr(TextTokenizer, "save_pretrained", lambda *_: full(_[0], Path("checkpoint-2")))
    with pytest.raises(UserError, match=r"final was not written: .*; then start the same command again"):
        sft.train(arguments(model, train_data), sft_world.trainer_arguments(tmp_path / "other", max_steps=1))
    assert not (tmp_path / "other" / "final").exists()
