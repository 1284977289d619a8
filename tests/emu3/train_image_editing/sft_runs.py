"""A run of fine-tuning in the small world, and what it left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from emu3.mllm.language_model import load_language_model
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.train_image_editing.dataset import Collator, EncodedRows, MixedRows, Mixture
from emu3.train_image_editing.sft import SftArguments
from emu3.train_image_editing.shards import read_rows
from emu3.train_image_editing.trainer import EditTrainer


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
