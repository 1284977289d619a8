"""Fine-tuning: the loss is the one that is written down, however a step is cut up and however often a run stops."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sft_world
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments
from warm_ranks import warm_ranks

from emu3.checkpoint_facts import model_origin, read_facts
from emu3.errors import UserError
from emu3.files import read_json, write_json
from emu3.mllm.language_model import load_language_model
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.train_image_editing import sft
from emu3.train_image_editing.dataset import IGNORED, Collator, EncodedRows, MixedRows, Mixture
from emu3.train_image_editing.objective import TargetLosses, mean_per_row, weighted_sum
from emu3.train_image_editing.sft import SftArguments
from emu3.train_image_editing.shards import read_rows
from emu3.train_image_editing.trainer import WHOLE, EditTrainer, last_whole_checkpoint

GOLDEN = Path(__file__).parents[2] / "golden" / "sft.json"


def arguments(model: Path, data: Path, **values: Any) -> SftArguments:
    return SftArguments(model_name_or_path=str(model), train_data=[str(data)], **values)


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def losses(output: Path) -> list[float]:
    return [entry["loss"] for entry in metrics(output) if "loss" in entry]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_language_model(folder).state_dict()


def trainer_fp64(model: Path, data: Path, training: TrainingArguments, weight: float = 3.0) -> EditTrainer:
    tokenizer = TextTokenizer.from_pretrained(model)
    rows = EncodedRows(read_rows(data), tokenizer, ["reasoning_verbose"], 256, missing="drop")
    return EditTrainer(
        model=load_language_model(model).double(),
        args=training,
        train_dataset=MixedRows([rows], Mixture([len(rows)])),
        eval_dataset=MixedRows([rows], Mixture([len(rows)])),
        data_collator=Collator(tokenizer.layout.pad, weight),
        text_tokenizer=tokenizer,
    )


def test_golden_trajectory(model: Path, train_data: Path, tmp_path: Path) -> None:
    """Eight steps in float32. Sums in another order (other BLAS, other vector width) move these losses in the sixth
    digit; a changed mask, shift, weight, order, schedule or initialization moves them in the third or before."""
    training = sft_world.trainer_arguments(
        tmp_path, lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": 1e-3}
    )
    sft.train(arguments(model, train_data, changed_token_weight=4.0), training)
    golden = json.loads(GOLDEN.read_text())
    assert losses(tmp_path) == pytest.approx(golden["losses"], rel=1e-4)
    assert metrics(tmp_path)[-2]["learning_rate"] > 1e-3


def test_it_learns(model: Path, train_data: Path, tmp_path: Path) -> None:
    """Target tokens are nearly determined: the loss has to fall far below that of guessing."""
    sft.train(arguments(model, train_data), sft_world.trainer_arguments(tmp_path, max_steps=40, learning_rate=2e-2))
    assert losses(tmp_path)[-1] < 0.5 * losses(tmp_path)[0]


@pytest.mark.parametrize(("batch", "micro_batches"), [(1, 8), (4, 2)])
def test_micro_batches_do_not_change_a_step(
    model: Path, train_data: Path, tmp_path: Path, batch: int, micro_batches: int
) -> None:
    """A mean per micro-batch weighs a short row's tokens more than a long one's. In float64, so that only a wrong
    normalization can differ; `logging_steps` is 1, so the logged loss is compared as well. AdamW hides the scale of
    a gradient, so plain gradient descent is used."""
    runs = {}
    for size, steps in ((8, 1), (batch, micro_batches)):
        training = sft_world.trainer_arguments(
            tmp_path / f"{size}x{steps}", optim="sgd", learning_rate=0.1, max_steps=3,
            per_device_train_batch_size=size, gradient_accumulation_steps=steps,
        )  # fmt: skip
        trainer = trainer_fp64(model, train_data, training)
        trainer.train()
        runs[size] = ([entry["loss"] for entry in trainer.state.log_history[:-1]], trainer.model.state_dict())
    assert runs[8][0] == pytest.approx(runs[batch][0], rel=1e-6)
    for name, tensor in runs[8][1].items():
        torch.testing.assert_close(runs[batch][1][name], tensor, rtol=1e-9, atol=1e-12)


def test_the_first_loss_is_the_weighted_mean_over_target_tokens(model: Path, train_data: Path, tmp_path: Path) -> None:
    """Written out row by row, without padding, without slicing the head."""
    training = sft_world.trainer_arguments(tmp_path, per_device_train_batch_size=8, max_steps=1)
    trainer = trainer_fp64(model, train_data, training, weight=3.0)
    examples = [trainer.train_dataset[index] for index in range(8)]
    plain = load_language_model(model).double()
    total = weight = 0.0
    for example in examples:
        with torch.no_grad():
            logits = plain(torch.tensor(example.tokens[None], dtype=torch.long)).logits[0].log_softmax(-1)
        for place in range(example.start, len(example.tokens)):
            factor = 3.0 if example.changed[place] else 1.0
            total -= factor * float(logits[place - 1, example.tokens[place]])
            weight += factor
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(total / weight, rel=1e-6)


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


@pytest.mark.parametrize("batch", [1, 5])
def test_the_evaluation_loss_does_not_depend_on_the_batch(
    model: Path, train_data: Path, tmp_path: Path, batch: int
) -> None:
    training = sft_world.trainer_arguments(tmp_path, per_device_eval_batch_size=batch)
    trainer = trainer_fp64(model, train_data, training)
    one = sft_world.trainer_arguments(tmp_path, per_device_eval_batch_size=8)
    expected = trainer_fp64(model, train_data, one, weight=1.0).evaluate()["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)


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


def test_the_console_has_one_line_per_logging_step(
    model: Path, train_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against the libraries' bars and dictionaries, which bury what a person looks for."""
    training = sft_world.trainer_arguments(
        tmp_path, max_steps=4, logging_steps=2, eval_strategy="steps", eval_steps=4, save_strategy="steps",
        save_steps=2, disable_tqdm=False,
    )  # fmt: skip
    sft.train(arguments(model, train_data, eval_data=[str(train_data)]), training)
    told = capsys.readouterr()
    assert told.err == ""
    heading, *steps = told.out.splitlines()[4:]  # after one line per folder of rows, and the estimate of memory
    assert heading.split() == ["step", "loss", "eval", "loss", "grad", "lr", "tokens/s", "s/step", "GB", "left"]
    speed = r"( +(-|\d\S*)){3} +(-|\d\S*( \S+)*)"
    assert re.fullmatch(rf" *2/4 +\d\.\d{{4}} +- +\d+\.\d{{3}} +\d\.\d\de-\d\d{speed}", steps[0])
    assert re.fullmatch(rf" *4/4 +\d\.\d{{4}} +- +\d+\.\d{{3}} +\d\.\d\de-\d\d{speed}", steps[1])
    assert re.fullmatch(r" *4/4 +- +\d\.\d{4} +- +- +- +- +- +(-|0 s)", steps[2])
    assert re.fullmatch(r"4 of 4 steps done in \S+ s", steps[3]) and len(steps) == 4


def test_data_of_two_tokenizers_is_refused(model: Path, train_data: Path, tmp_path: Path) -> None:
    other = sft_world.data(tmp_path / "other", sft_world.edits(2), vision_sha256="1" * 64)
    with pytest.raises(UserError, match="vision_sha256"):
        sft.train(
            SftArguments(str(model), [str(train_data), str(other)]), sft_world.trainer_arguments(tmp_path / "out")
        )


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


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one(model: Path, train_data: Path, tmp_path: Path) -> None:
    """Ranks whose rows are shorter must not weigh more per token (the published normalization is per rank)."""
    common = [
        "-m", "emu3.train_image_editing.sft", "--model_name_or_path", str(model), "--train_data", str(train_data),
        "--changed_token_weight", "3", "--max_steps", "3", "--use_cpu", "--optim", "sgd", "--learning_rate", "0.1",
        "--logging_steps", "1", "--save_strategy", "no", "--disable_tqdm", "True",
    ]  # fmt: skip
    for ranks, batch, output in ((0, "4", "one"), (2, "2", "two")):
        done = warm_ranks(
            ranks, *common, "--per_device_train_batch_size", batch, "--output_dir", str(tmp_path / output)
        )
        assert done.returncode == 0, done.stderr[-2000:]
    # float32: the ranks' partial sums are added in another order.
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    two, one = weights(tmp_path / "two" / "final"), weights(tmp_path / "one" / "final")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6)


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


def test_training_ends_on_a_plateau_and_keeps_the_best(model: Path, train_data: Path, tmp_path: Path) -> None:
    """As the paper's: the final model is the one with the smallest evaluation loss, also after an interruption."""
    values: dict[str, Any] = {
        "max_steps": 30, "learning_rate": 0.5, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps",
        "eval_steps": 1, "load_best_model_at_end": True, "save_total_limit": 2, "lr_scheduler_type": "constant",
    }  # fmt: skip
    given = arguments(model, train_data, eval_data=[str(train_data)], early_stopping_patience=3)
    final = sft.train(given, sft_world.trainer_arguments(tmp_path, **values))
    evaluations = [entry["eval_loss"] for entry in metrics(tmp_path) if "eval_loss" in entry]
    best = evaluations.index(min(evaluations)) + 1
    assert len(evaluations) == best + 3 < 30
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == sorted(
        {f"checkpoint-{best}", f"checkpoint-{best + 3}"}
    )
    kept = weights(tmp_path / f"checkpoint-{best}")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights(final).items())
    assert not list(final.glob("optimizer*")) and not (final / WHOLE).exists()

    shutil.rmtree(final)
    (tmp_path / sft.FINISHED).unlink()
    sft.train(given, sft_world.trainer_arguments(tmp_path, **values))
    assert sum("eval_loss" in entry for entry in metrics(tmp_path)) == best + 3
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights(final).items())


def test_a_run_that_diverges_ends_and_leaves_no_checkpoint_of_it(model: Path, train_data: Path, tmp_path: Path) -> None:
    """The Trainer replaces a loss that is not a number by the mean of those before, and saves."""
    values: dict[str, Any] = {"max_steps": 30, "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e6}
    with pytest.raises(UserError, match=r"step \d+: the .* is (nan|inf), the run diverged"):
        sft.train(arguments(model, train_data), sft_world.trainer_arguments(tmp_path, optim="sgd", **values))
    for folder in tmp_path.glob("checkpoint-*"):
        assert all(torch.isfinite(tensor).all() for tensor in weights(folder).values())
    assert not (tmp_path / "final").exists()


def test_adapters_alone_are_trained_and_the_model_is_merged(model: Path, train_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    values: dict[str, Any] = {"max_steps": 3, "learning_rate": 0.1, "save_strategy": "steps", "save_steps": 2}
    given = arguments(model, train_data, lora_rank=2, lora_alpha=4.0)
    final = sft.train(given, sft_world.trainer_arguments(tmp_path / "whole", **values))
    base, trained = weights(model), weights(final)
    changed = {name for name, tensor in trained.items() if not torch.equal(tensor, base[name])}
    assert changed and all("_proj" in name for name in changed)
    optimizer = load_file(tmp_path / "whole" / "checkpoint-2" / "optimizer.safetensors")
    assert all(".lora_" in name for name in optimizer)
    # Resumed, its adapters and their moments go on.
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "parts" / "checkpoint-2")
    resumed = sft.train(given, sft_world.trainer_arguments(tmp_path / "parts", **values))
    assert all(torch.equal(tensor, trained[name]) for name, tensor in weights(resumed).items())


def test_the_head_in_chunks_gives_the_loss_and_gradients_of_all_logits(model: Path, train_data: Path) -> None:
    """In float64, so that only a chunk that is lost or doubled can differ."""
    tokenizer = TextTokenizer.from_pretrained(model)
    rows = EncodedRows(read_rows(train_data), tokenizer, ["reasoning_verbose"], 256)
    batch = Collator(tokenizer.layout.pad, 3.0)([rows[index] for index in range(5)])
    plain = load_language_model(model).double()
    logits = plain(batch["input_ids"]).logits[:, -batch["targets"].shape[1] :]
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["targets"], reduction="none")
    (expected * batch["weights"]).sum().backward()

    ours = load_language_model(model).double()
    losses_N = TargetLosses(ours, chunk_bytes=4096)(batch["input_ids"], batch["targets"])
    weighted_sum(losses_N, batch["targets"], batch["weights"]).backward()
    torch.testing.assert_close(losses_N, expected[batch["targets"] != IGNORED], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        mean_per_row(losses_N, batch["targets"]),
        expected.sum(1) / (batch["targets"] != IGNORED).sum(1),
        rtol=1e-12,
        atol=1e-12,
    )
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, plain.get_parameter(name).grad, rtol=1e-9, atol=1e-12)


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
