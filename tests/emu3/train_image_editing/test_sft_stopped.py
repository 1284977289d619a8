"""Fine-tuning that is stopped, started twice, or started again on something else."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sft_world
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from emu3.errors import UserError
from emu3.run_folder import owned
from emu3.train_image_editing import sft
from emu3.train_image_editing.sft import SftArguments
from emu3.train_image_editing.trainer import EditTrainer


def arguments(model: Path, data: Path) -> SftArguments:
    return SftArguments(model_name_or_path=str(model), train_data=[str(data)])


def losses(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "killed before its end"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup"])
def test_another_length_keeps_the_schedules_meaning_or_is_refused(
    model: Path, train_data: Path, tmp_path: Path, schedule: str, finished: bool
) -> None:
    """A cosine of 6 steps continued to 12 went down to 1e-5 and up to 5e-4 again, without a word."""
    values: dict[str, Any] = {
        "max_steps": 2, "save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": schedule,
    }  # fmt: skip
    sft.train(arguments(model, train_data), sft_world.trainer_arguments(tmp_path, **values))
    if not finished:
        shutil.rmtree(tmp_path / "checkpoint-2")
        shutil.rmtree(tmp_path / "final")
        (tmp_path / "finished.json").unlink()
    longer = sft_world.trainer_arguments(tmp_path, **{**values, "max_steps": 4})
    if schedule == "constant_with_warmup":
        sft.train(arguments(model, train_data), longer)
        assert len(losses(tmp_path)) == 4
        return
    with pytest.raises(UserError, match=r"holds a run with .*max_steps=2, this one has .*max_steps=4: ") as refused:
        sft.train(arguments(model, train_data), longer)
    assert "another --output_dir" in str(refused.value)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_saves_and_the_run_goes_on_as_if_nothing_had_been(
    model: Path, train_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    """Steps since the last checkpoint were lost: 200 of them in a job whose time is up."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    sft.train(arguments(model, train_data), sft_world.trainer_arguments(whole, max_steps=4))

    class Ask(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft, "EditTrainer", lambda **options: with_callback(EditTrainer(**options), Ask()))
        with pytest.raises(SystemExit) as ended:
            sft.train(arguments(model, train_data), sft_world.trainer_arguments(stopped, max_steps=4))
    assert ended.value.code == 128 + number
    assert "the state after 2 steps is saved; the same command goes on from there" in capsys.readouterr().out
    assert [path.name for path in stopped.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (stopped / "final").exists()
    sft.train(arguments(model, train_data), sft_world.trainer_arguments(stopped, max_steps=4))
    assert losses(stopped) == losses(whole)
    weights = [(run / "final" / "model.safetensors").read_bytes() for run in (whole, stopped)]
    assert weights[0] == weights[1]


def with_callback(trainer: EditTrainer, callback: TrainerCallback) -> EditTrainer:
    trainer.add_callback(callback)
    return trainer


def test_a_folder_in_use_is_refused(model: Path, train_data: Path, tmp_path: Path) -> None:
    """Two trainers in one folder, after a launcher had been killed, overwrote each other's checkpoints."""
    with owned(tmp_path), pytest.raises(UserError, match="is in use by"):
        sft.train(arguments(model, train_data), sft_world.trainer_arguments(tmp_path, max_steps=1))
    assert not list(tmp_path.iterdir())


def test_the_folder_of_another_commands_training_is_refused(model: Path, train_data: Path, tmp_path: Path) -> None:
    """RL's metrics were cut to none, and its `final` replaced."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "reward": 2.0}\n')
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds a training of another command, without sft_arguments\.json: "):
        sft.train(arguments(model, train_data), sft_world.trainer_arguments(tmp_path, max_steps=1))
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0, "reward": 2.0}\n'


@pytest.mark.parametrize("changed", ["model", "config", "data", "tokenizer"])
def test_a_run_on_other_inputs_is_refused(model: Path, train_data: Path, tmp_path: Path, changed: str) -> None:
    """Guards a run that goes on after the folder that it was started from was filled anew under the same name."""
    values: dict[str, Any] = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    start, data = tmp_path / "start", tmp_path / "data"
    shutil.copytree(model, start)
    shutil.copytree(train_data, data)
    sft.train(arguments(start, data), sft_world.trainer_arguments(tmp_path / "run", **values))
    shutil.rmtree(tmp_path / "run" / "final")
    if changed == "model":
        weights = start / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    elif changed == "config":
        config = json.loads((start / "config.json").read_text())
        (start / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    elif changed == "tokenizer":
        with (start / "tokenizer.json").open("a") as file:
            file.write("\n")
    else:
        manifest = json.loads((data / "manifest.json").read_text())
        (data / "manifest.json").write_text(json.dumps({**manifest, "note": "made anew"}))
    with pytest.raises(UserError, match=rf"holds a run with inputs\.{changed}="):
        sft.train(arguments(start, data), sft_world.trainer_arguments(tmp_path / "run", **values))


@pytest.mark.parametrize(
    "flag",
    [
        {"label_smoothing_factor": 0.5},
        {"neftune_noise_alpha": 5.0},
        {"save_only_model": True},
        {"average_tokens_across_devices": False},
        {"label_names": ["labels"]},
    ],
    ids=lambda flag: next(iter(flag)),
)
def test_flags_that_this_loss_ignores_are_refused(
    model: Path, train_data: Path, tmp_path: Path, flag: dict[str, Any]
) -> None:
    """`--label_smoothing_factor 0.5` had no effect, silently."""
    with pytest.raises(UserError, match=f"^--{next(iter(flag))} .* has no effect on this training: leave it out$"):
        sft.train(arguments(model, train_data), sft_world.trainer_arguments(tmp_path / "out", **flag))


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("learning_rate", float("nan")),
        ("adam_beta1", 1.5),
        ("weight_decay", float("inf")),
        ("max_grad_norm", -1.0),
        ("per_device_train_batch_size", 0),
        ("gradient_accumulation_steps", 0),
        ("seed", 2**32),
        ("save_total_limit", 0),
    ],
)
def test_the_trainers_numbers_have_ranges(
    model: Path, train_data: Path, tmp_path: Path, flag: str, value: float
) -> None:
    """`--learning_rate nan` trained until the loss was none, `--adam_beta1 1.5` without a word."""
    with pytest.raises(UserError, match=f"^--{flag}: expected (at least|more than|at most) .*, got {value}$"):
        sft.train(arguments(model, train_data), sft_world.trainer_arguments(tmp_path / "out", **{flag: value}))
    assert not (tmp_path / "out").exists()


def test_every_number_of_the_trainer_has_a_range() -> None:
    kinds = {item.name: item.type for item in fields(TrainingArguments)}
    of_numbers = {name for name, kind in kinds.items() if kind in (int, float, int | None, float | None)}
    assert of_numbers - set(sft._WITHOUT_EFFECT) - {"local_rank"} == set(sft.TRAINER_NUMBERS)


def test_only_checkpoints_of_its_own_go(model: Path, train_data: Path, tmp_path: Path) -> None:
    """`checkpoint-1_best`, which a person made, counted as one of the run's and was rotated away."""
    (tmp_path / "checkpoint-1_best").mkdir(parents=True)
    values: dict[str, Any] = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    sft.train(arguments(model, train_data), sft_world.trainer_arguments(tmp_path, **values))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1_best", "checkpoint-3"]


class GoneService(TrainerCallback):
    """A tracker of transformers' whose service is gone."""

    calls: ClassVar[list[str]] = []

    def on_log(self, *_: Any, **__: Any) -> None:
        self.calls.append("log")
        raise ConnectionError("the service is gone")

    def on_save(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("no such artifact")


def test_a_tracker_that_fails_costs_its_curves_alone(
    model: Path, train_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--report_to` of a service that died in the night ended the run."""
    monkeypatch.setattr(GoneService, "__module__", "transformers.integrations.gone")
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "gone", GoneService)
    values: dict[str, Any] = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "report_to": ["gone"]}
    sft.train(arguments(model, train_data), sft_world.trainer_arguments(tmp_path, **values))
    assert len(losses(tmp_path)) == 3 and (tmp_path / "final").is_dir() and len(GoneService.calls) > 1
    said = capsys.readouterr().err
    assert said.count("no line in GoneService: ") == 1 and "the run goes on" in said
