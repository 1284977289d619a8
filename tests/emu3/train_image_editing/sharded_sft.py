"""Fine-tuning runs one after the other in the processes of one launch: importing DeepSpeed takes longer than a run.

    sharded_sft.py RUNS.json        on every rank

RUNS.json: a list of objects with `sft` and `training`, the keyword arguments of the two classes of arguments,
`chunk_bytes` of the head and, for a run that is interrupted, `stop_after` so many steps; the disk is full while the
checkpoint `no_room_for` is written. Beside each run's metrics rank 0 leaves `seen.json`: what a live trainer shows.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.train_image_editing import sft, trainer
from emu3.train_image_editing.objective import TargetLosses
from emu3.train_image_editing.sft import SftArguments
from emu3.train_image_editing.trainer import EditTrainer


def seen(trainer: EditTrainer) -> dict[str, Any]:
    model = trainer.language_model
    rotary = model.model.rotary_emb
    exact = type(rotary)(config=model.config)
    found: dict[str, Any] = {
        "rotary": str(rotary.inv_freq.dtype),
        "rotary_error": float((rotary.inv_freq - exact.inv_freq).abs().max()),
        "weights": sorted({str(parameter.dtype) for parameter in model.parameters()}),
    }
    if trainer.is_deepspeed_enabled:
        zero = trainer.deepspeed.optimizer
        found["accumulated"] = str(zero.gradient_accumulation_dtype)
        found["decays"] = [group["weight_decay"] for group in zero.param_groups]
        found["sharded"] = sum(parameter.ds_tensor.numel() < parameter.ds_numel for parameter in model.parameters())
    return found


GET_BATCH_SAMPLES = EditTrainer.get_batch_samples


def stopping(self: EditTrainer, steps: int | None, *arguments: Any) -> Any:
    """`get_batch_samples`, interrupted before the step after the first `steps`."""
    if self.state.global_step == steps:
        raise KeyboardInterrupt
    return GET_BATCH_SAMPLES(self, *arguments)


SAVE_TOKENIZER = TextTokenizer.save_pretrained


def full_disk(self: TextTokenizer, checkpoint: str | None, folder: Path) -> None:
    """`save_pretrained`, for which there is no room in `checkpoint`."""
    if checkpoint is not None and checkpoint in folder.name:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    SAVE_TOKENIZER(self, folder)


def main() -> None:
    save_final = EditTrainer.save_final

    def record(self: EditTrainer, folder: Path) -> None:
        if self.is_world_process_zero():
            (folder.parent / "seen.json").write_text(json.dumps(seen(self)))
        save_final(self, folder)

    EditTrainer.save_final = record  # type: ignore[method-assign]
    for run in json.loads(Path(sys.argv[1]).read_text()):
        trainer.TargetLosses = partial(TargetLosses, chunk_bytes=run["chunk_bytes"])  # type: ignore[misc]
        TextTokenizer.save_pretrained = partialmethod(full_disk, run.get("no_room_for"))  # type: ignore[assignment]
        with contextlib.suppress(KeyboardInterrupt):
            EditTrainer.get_batch_samples = partialmethod(stopping, run.get("stop_after"))  # type: ignore[assignment]
            sft.train(SftArguments(**run["sft"]), TrainingArguments(**run["training"]))


if __name__ == "__main__":
    main()
