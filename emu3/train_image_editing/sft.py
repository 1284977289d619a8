"""Supervised fine-tuning: source and instruction in, edited image out.

    python -m emu3.train_image_editing.sft --model_name_or_path MODEL --train_data A B --eval_data C \\
        --output_dir OUT --learning_rate 1e-4 --lr_scheduler_type cosine_with_min_lr \\
        --lr_scheduler_kwargs '{"min_lr": 1e-5}' --max_steps 1000 --bf16

Everything that is not listed in `SftArguments` is a flag of transformers' Trainer (`--deepspeed` included). The
order of the rows depends on `--data_seed` (or `--seed`) alone. A run that finds whole checkpoints in its output
folder continues from the last one and ends as if it had never stopped; the final model is OUT/final, the metrics are
OUT/metrics.jsonl. From Python: `train(SftArguments(...), TrainingArguments(...))`.

`--changed_token_weight` above 1 counts the target codes that differ from the source more. Most of an edited image
repeats its source, and a small model otherwise learns to copy before it learns to read (published: 1).
`--prompt_token_weight` above 0 also learns to predict the prompt, source and instruction, as pretraining would: it
gives a model that never saw a image its first idea of them (published: 0, the base model is pretrained).

`--deepspeed scripts/zero3.json` shards weights, gradients and optimizer over the ranks, on GPUs and on CPUs; a run may
be continued on another number of ranks. `--lora_rank 64` trains adapters; what is saved is merged.
`--early_stopping_patience 5 --load_best_model_at_end True` with an evaluation loss is what the paper did: OUT/final is
the checkpoint with the smallest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.utils.data import Subset
from transformers import Emu3ForCausalLM, Emu3TextConfig, SchedulerType, TrainingArguments, get_scheduler

from emu3.checkpoint_facts import trained_facts
from emu3.errors import UserError, run_main
from emu3.files import read_json, sha256_of, write_json
from emu3.mllm.language_model import config_digest, load_language_model
from emu3.mllm.product import check_product, say_faster, use_product
from emu3.mllm.text_tokenizer import TextTokenizer, tokenizer_digest
from emu3.report.metrics_file import refuse_another_command
from emu3.run_folder import VERSION, SettingsFile, check_version, refuse_differences
from emu3.settings import Number, check_numbers
from emu3.tensor_files import TensorFiles
from emu3.train_image_editing.arguments import SftArguments, parse_sft
from emu3.train_image_editing.dataset import Collator, EncodedRows, MixedRows, Mixture
from emu3.train_image_editing.metrics import ARGUMENTS, output_folder
from emu3.train_image_editing.shards import MANIFEST, Rows, check_alike, read_rows
from emu3.train_image_editing.trainer import EditTrainer, last_whole_checkpoint
from emu3.training import ranks
from emu3.training.checkpoints import checkpoint_bytes, save_time
from emu3.training.memory import sft_memory, this_device
from emu3.training.ranks import Stopping, end_run, stopping
from emu3.training.state import ADAPTER, add_lora, start_communication

FINAL = "final"
FINISHED = "finished.json"
FORMAT = 2
"""Of the settings; 1 had no version."""


def train(arguments: SftArguments, training: TrainingArguments) -> Path:
    """Fine-tune and return the folder of the final model (weights, config, tokenizer files).

    Raises UserError for missing or unsuitable data, a wrong checkpoint folder, arguments that do not fit together, and
    an output folder that holds a run with other arguments or is another process's. Ends by SystemExit, with its state
    saved, when it is asked to by a signal (`emu3.training.ranks`).
    """
    assert training.device  # whose look-up makes the ranks known to each other
    with ranks.owned_by_first(output_folder(training)), stopping() as stop:
        return _train(arguments, training, stop)


def _train(arguments: SftArguments, training: TrainingArguments, stop: Stopping) -> Path:
    output = output_folder(training)
    _check_arguments(arguments, training)
    refuse_another_command(output, ARGUMENTS)
    settings = _settings(arguments, training)
    replace(_settings_file(output), decisive=list(settings)).check(settings)
    if _is_finished(training, output):
        if training.process_index == 0:
            print(f"{output / FINAL} is finished: nothing to do", flush=True)
        return output / FINAL

    tokenizer = TextTokenizer.from_pretrained(arguments.tokenizer_path or arguments.model_name_or_path)
    train_rows = [read_rows(folder) for folder in arguments.train_data]
    eval_rows = [read_rows(folder) for folder in arguments.eval_data]
    expected = {} if arguments.image_area is None else {"image_area": arguments.image_area}
    check_alike([*train_rows, *eval_rows], expected)
    checkpoint = _checkpoint(training, output)
    settings["inputs"] = ranks.on_first(partial(_inputs, arguments, [*train_rows, *eval_rows]))
    ranks.on_first(partial(_settings_file(output).check, settings))
    if training.deepspeed:
        start_communication(training.device)
    model = _model(arguments, training, checkpoint)
    if model.config.vocab_size != tokenizer.layout.vocab_size:
        raise UserError(
            f"{arguments.model_name_or_path} has {model.config.vocab_size} token ids, its tokenizer "
            f"{tokenizer.layout.vocab_size}"
        )
    try:
        model.set_attn_implementation(arguments.attn_implementation)
    except (ValueError, ImportError) as error:
        raise UserError(f"--attn_implementation {arguments.attn_implementation}: {error}") from error
    if arguments.max_position_embeddings is not None:
        model.config.max_position_embeddings = arguments.max_position_embeddings

    def encoded(datasets: Sequence[Rows]) -> list[EncodedRows]:
        limit, missing = model.config.max_position_embeddings, arguments.reasoning_missing
        return [EncodedRows(rows, tokenizer, arguments.cot_keys, limit, missing) for rows in datasets]

    seed = training.seed if training.data_seed is None else training.data_seed
    train_parts, eval_parts = encoded(train_rows), encoded(eval_rows)
    mixture = Mixture([len(part) for part in train_parts], arguments.coefficients, seed)
    first = training.process_index == 0  # which alone writes
    facts = trained_facts(arguments.model_name_or_path, [rows.folder for rows in train_rows], "sft") if first else None
    trainer = EditTrainer(
        model=model,
        args=training,
        train_dataset=MixedRows(train_parts, mixture),
        eval_dataset=_validation(eval_parts, arguments.validation_size, seed) if eval_parts else None,
        data_collator=Collator(tokenizer.layout.pad, arguments.changed_token_weight, arguments.prompt_token_weight),
        text_tokenizer=tokenizer,
        dropout=arguments.dropout,
        patience=arguments.early_stopping_patience,
        lora=arguments.lora_rank > 0,
        stop=stop,
        facts=facts,
    )
    if trainer.is_world_process_zero():
        _settings_file(output).record(settings)
        for rows, part in zip([*train_rows, *eval_rows], [*train_parts, *eval_parts], strict=True):
            dropped = ", ".join(f"{count} {why}" for why, count in part.dropped.items() if count)
            plain = f", of which {part.plain} without reasoning are plain edits" if part.plain else ""
            print(f"{rows.folder}: {len(part)} rows{plain}" + (f", dropped {dropped}" if dropped else ""), flush=True)
        size = checkpoint_bytes(model, sharded=bool(training.deepspeed))
        lines = [*_needed(arguments, training, model.config, train_parts), save_time(output, size)]
        print("\n".join(line for line in lines if line is not None), flush=True)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if stop.acted:
        end_run(output, stop.number, f"the state after {trainer.saved_steps} steps is saved")
    trainer.save_final(output / FINAL)
    if trainer.is_world_process_zero():
        write_json(output / FINISHED, {VERSION: FORMAT, **_length(training)})
    return output / FINAL


def _length(training: TrainingArguments) -> dict[str, float]:
    return {"max_steps": training.max_steps, "num_train_epochs": training.num_train_epochs}


def _is_finished(training: TrainingArguments, output: Path) -> bool:
    """Whether the run of this length has left its model. Raises UserError for one of another length: its schedule has
    come to its end, and would begin again or jump."""
    if not (output / FINISHED).is_file() or not (output / FINAL).is_dir():
        return False
    found = read_json(output / FINISHED)
    check_version(output / FINISHED, found, FORMAT)
    before = {name: found.get(name) for name in _length(training)}
    if _has_schedule(training):
        again = f"it is finished; start from {output / FINAL} (--model_name_or_path) in another --output_dir"
        refuse_differences(output, before, _length(training), again)
    return before == _length(training)


def _has_schedule(training: TrainingArguments) -> bool:
    """Whether the learning rate is laid out for the run's length."""
    constant = (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP)
    return SchedulerType(training.lr_scheduler_type) not in constant


def _inputs(arguments: SftArguments, datasets: Sequence[Rows]) -> dict[str, Any]:
    """Digests of what a run is made from."""
    return {
        "model": TensorFiles.of(arguments.model_name_or_path).digest(),
        "config": config_digest(arguments.model_name_or_path),
        "tokenizer": tokenizer_digest(arguments.tokenizer_path or arguments.model_name_or_path),
        "data": [sha256_of(rows.folder / MANIFEST) for rows in datasets],
    }


def _model(arguments: SftArguments, training: TrainingArguments, checkpoint: Path | None) -> Emu3ForCausalLM:
    """The model to train, at the start or as `checkpoint` has it, in the dtype that its weights are kept in: bfloat16
    where DeepSpeed holds float32 master weights beside them, else float32."""
    dtype = torch.bfloat16 if training.deepspeed and training.bf16 else torch.float32
    whole = checkpoint if checkpoint is not None and not arguments.lora_rank else None
    model = load_language_model(whole or arguments.model_name_or_path, dtype)
    use_product(model, arguments.product)
    if not arguments.lora_rank:
        return model
    add_lora(model, arguments.lora_rank, arguments.lora_alpha, training.seed)
    if checkpoint is not None:
        model.load_state_dict(load_file(checkpoint / ADAPTER), strict=False)
    return model


def _needed(
    arguments: SftArguments, training: TrainingArguments, model: Emu3TextConfig, parts: Sequence[EncodedRows]
) -> list[str]:
    """What the run will take, for whoever watches it start. Counts and rules of thumb: nothing is refused for them."""
    tokens, targets = (max(sizes) for sizes in zip(*(part.longest for part in parts), strict=True))
    zero = training.hf_deepspeed_config.config["zero_optimization"] if training.deepspeed else {}
    device = this_device(training.device, training.world_size)
    needed = sft_memory(
        model,
        rows=training.per_device_train_batch_size,
        tokens=tokens,
        targets=tokens - 1 if arguments.prompt_token_weight else targets,
        ranks=training.world_size,
        ranks_here=device.ranks_here,
        zero=zero["stage"] if zero.get("stage") in (2, 3) else 0,
        offload="offload_optimizer" in zero,
        bf16=training.bf16,
        gradient_checkpointing=training.gradient_checkpointing,
        lora_rank=arguments.lora_rank or None,
        gpu=device.name is not None,
    )
    return [f"estimate for {training.world_size} x {device.name or 'CPU process'}", *needed.lines(device)]


def _validation(parts: Sequence[EncodedRows], size: int | None, seed: int) -> MixedRows | Subset:
    rows = MixedRows(parts, Mixture([len(part) for part in parts], [1.0] * len(parts)))
    if size is None or size >= len(rows):
        return rows
    return Subset(rows, sorted(np.random.default_rng(seed).permutation(len(rows))[:size].tolist()))


def _check_arguments(arguments: SftArguments, training: TrainingArguments) -> None:
    """Refuse at once what would otherwise show when data and model are loaded and files are written."""
    check_numbers(arguments, lambda name: f"--{name}")
    for name, bounds in TRAINER_NUMBERS.items():
        value = getattr(training, name)
        if value is not None and value not in bounds:
            raise UserError(f"--{name}: expected {bounds}, got {value}")
    if arguments.early_stopping_patience is not None and training.eval_strategy == "no":
        raise UserError("--early_stopping_patience needs --eval_data and --eval_strategy steps")
    if training.eval_strategy != "no" and not arguments.eval_data:
        raise UserError(f"--eval_strategy {training.eval_strategy} needs --eval_data")
    if arguments.product != "plain" and (training.bf16 or training.fp16 or training.deepspeed):
        raise UserError(f"--product {arguments.product} is for float32 and goes without --bf16, --fp16 and --deepspeed")
    check_product("--product ", arguments.product, training.device)
    for item in fields(TrainingArguments):
        usual = item.default if item.default_factory is MISSING else item.default_factory()
        if item.name in _WITHOUT_EFFECT and getattr(training, item.name) != usual:
            raise UserError(
                f"--{item.name} {getattr(training, item.name)} has no effect on this training: leave it out"
            )
    resume = training.resume_from_checkpoint
    if resume is not None and not Path(resume).is_dir():
        raise UserError(f"--resume_from_checkpoint {resume} is no folder; left out, the last whole one is taken")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    options = training.lr_scheduler_kwargs
    try:
        get_scheduler(training.lr_scheduler_type, optimizer, 1, 2, options)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise UserError(f"--lr_scheduler_type with --lr_scheduler_kwargs {options}: {error}") from error


_COUNT, _SEED, _INTERVAL = Number(least=1, most=2**31), Number(least=0, most=2**32 - 1), Number(above=0, most=2**53)
TRAINER_NUMBERS = {
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "eval_accumulation_steps": _COUNT,
    "torch_empty_cache_steps": _COUNT,
    "save_total_limit": _COUNT,
    "num_train_epochs": Number(above=0, most=1e9),
    "max_steps": Number(least=-1, most=2**53),
    "learning_rate": Number(least=0, most=1e6),
    "warmup_steps": Number(least=0, most=2**53),
    "weight_decay": Number(least=0, most=1e6),
    "adam_beta1": Number(least=0, below=1),
    "adam_beta2": Number(least=0, below=1),
    "adam_epsilon": Number(above=0, most=1),
    "max_grad_norm": Number(least=0, most=1e9),
    "logging_steps": _INTERVAL,
    "eval_steps": _INTERVAL,
    "save_steps": _INTERVAL,
    "eval_delay": Number(least=0, most=2**53),
    "seed": _SEED,
    "data_seed": _SEED,
    "dataloader_num_workers": Number(least=0, most=1024),
    "dataloader_prefetch_factor": _COUNT,
    "ddp_bucket_cap_mb": _COUNT,
    "ddp_timeout": _COUNT,
}
"""The ranges of the Trainer's own numbers, which it takes as they are; max_steps -1 counts in epochs."""

_WITHOUT_EFFECT = (
    *("label_smoothing_factor", "label_names", "average_tokens_across_devices", "neftune_noise_alpha"),
    *("save_only_model", "restore_callback_states_from_checkpoint", "include_for_metrics", "eval_do_concat_batches"),
)
"""Flags of the Trainer that its loss, its metrics or its checkpoints would read, which are replaced here."""

_MISSING_BEFORE = "drop"
"""What became of rows without reasoning before it could be said."""

_SAME_IN_A_RESUMED_RUN = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "weight_decay"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed", "data_seed"),
)


def _settings(arguments: SftArguments, training: TrainingArguments) -> dict[str, Any]:
    """What has to stay when a run is continued: another number of processes may be chosen, and another length where the
    learning rate is constant. Another rate would take no effect, since the schedule's comes from the checkpoint."""
    values = training.to_dict()
    trainer = {name: values[name] for name in _SAME_IN_A_RESUMED_RUN}
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    schedule = {"schedule_length": _length(training)} if _has_schedule(training) else {}
    settings = {**asdict(arguments), **trainer, "rows_per_step": rows, **schedule}
    if not arguments.cot_keys:  # of which no row lacks any: the same run, whatever is said
        settings["reasoning_missing"] = _MISSING_BEFORE
    return settings


def _settings_file(output: Path) -> SettingsFile:
    """A run continues what lies in its output folder, so that has to be the same run. What a run of an older version
    did not know yet had its default."""
    later = {item.name: item.default for item in fields(SftArguments) if item.default is not MISSING}
    later["reasoning_missing"] = _MISSING_BEFORE
    return SettingsFile(
        output / ARGUMENTS,
        version=FORMAT,
        remedy="choose another --output_dir",
        later=later,
        unknown=("inputs", "schedule_length"),
    )


def _checkpoint(training: TrainingArguments, output: Path) -> Path | None:
    if training.resume_from_checkpoint is not None:
        return Path(training.resume_from_checkpoint)
    checkpoint = last_whole_checkpoint(output)
    if checkpoint is None:
        return None
    if training.process_index == 0:
        print(f"continuing from {checkpoint}", flush=True)
    return checkpoint


def main() -> None:
    arguments, training = parse_sft(TrainingArguments)
    if training.process_index == 0 and not (training.bf16 or training.fp16 or training.deepspeed):
        say_faster("--product ", arguments.product, training.device)
    train(arguments, training)


if __name__ == "__main__":
    run_main(main)
