"""Fine-tuning: the loss is the one that is written down, however a step is cut up and however often a run stops."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import sft_world
import torch
from safetensors.torch import load_file
from sft_runs import arguments, losses, metrics, trainer_fp64, weights
from warm_ranks import warm_ranks

from emu3.errors import UserError
from emu3.mllm.language_model import load_language_model
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.train_image_editing import sft
from emu3.train_image_editing.dataset import IGNORED, Collator, EncodedRows
from emu3.train_image_editing.objective import TargetLosses, mean_per_row, weighted_sum
from emu3.train_image_editing.sft import SftArguments
from emu3.train_image_editing.shards import read_rows
from emu3.train_image_editing.trainer import WHOLE

GOLDEN = Path(__file__).parents[2] / "golden" / "sft.json"


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


@pytest.mark.parametrize("batch", [1, 5])
def test_the_evaluation_loss_does_not_depend_on_the_batch(
    model: Path, train_data: Path, tmp_path: Path, batch: int
) -> None:
    training = sft_world.trainer_arguments(tmp_path, per_device_eval_batch_size=batch)
    trainer = trainer_fp64(model, train_data, training)
    one = sft_world.trainer_arguments(tmp_path, per_device_eval_batch_size=8)
    expected = trainer_fp64(model, train_data, one, weight=1.0).evaluate()["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)


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
