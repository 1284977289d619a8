"""transformers' Trainer with this project's loss, and checkpoints that are whole or not used.

The Trainer keeps what it is good at: accumulation, mixed precision, DDP, DeepSpeed, schedules, logging, resuming.
Replaced are the loss and its normalisation. The Trainer's own count is of tokens; here an optimiser step is divided
by the summed weight of its target tokens on all ranks. DDP and DeepSpeed average gradients over ranks, hence the
factor `num_processes`.

The Trainer writes a checkpoint in place, so each gets a last file, `whole.json`, with the sizes of the others; a
folder without it, or with other sizes, was cut short and is passed over. It holds no pickle: optimiser and schedule
are stored as safetensors and JSON (under DeepSpeed, by DeepSpeed in its own torch files). No random state is stored,
since training has no dropout and the order of the rows follows from the seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, Trainer
from transformers.trainer import TRAINING_ARGS_NAME, rotate_checkpoints
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from emu3.files import read_json, whole_folder, write_json
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.training.optimizer_state import load_optimizer, save_optimizer
from emu3.train_image_editing.loss import mean_per_row, weighted_sum
from emu3.train_image_editing.metrics import MetricsLog, output_folder

WHOLE = "whole.json"
SCHEDULE = "schedule.json"


class EditTrainer(Trainer):
    """Trains on batches of `dataset.Collator`. Takes Trainer's arguments and the text tokenizer, whose files go
    into every checkpoint, so that each can be sampled from."""

    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, text_tokenizer: TextTokenizer, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.text_tokenizer = text_tokenizer
        for noisy in (ProgressCallback, PrinterCallback):
            self.remove_callback(noisy)
        self.add_callback(MetricsLog())

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """The micro-batches of one optimiser step, and the weight of their target tokens on all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        weight = torch.stack([batch["weights"].sum(dtype=torch.float64) for batch in batches]).sum().to(device)
        if self.accelerator.num_processes > 1:
            weight = self.accelerator.gather(weight).sum()
        return batches, weight

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's share of the step's weighted mean; `num_items_in_batch` is the weight of the step."""
        assert num_items_in_batch is not None and not return_outputs
        loss = weighted_sum(_logits(model, inputs), inputs["targets"], inputs["weights"])
        return loss * self.accelerator.num_processes / num_items_in_batch

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """Unweighted mean over the rows of a batch of each row's mean loss per target token."""
        inputs = self._prepare_inputs(dict(inputs))
        with torch.no_grad():
            return mean_per_row(_logits(model, inputs), inputs["targets"]).mean(), None, None

    def save_model_whole(self, folder: Path) -> None:
        """Write weights, config and tokenizer files as the whole of `folder`. All ranks have to call it."""
        state = self.accelerator.get_state_dict(self.model_wrapped)
        if self.is_world_process_zero():
            model = cast(PreTrainedModel, self.model)
            with whole_folder(folder) as temporary:
                model.save_pretrained(temporary, state_dict=state)
                self.text_tokenizer.save_pretrained(temporary)
        self.accelerator.wait_for_everyone()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            folder = Path(output_dir)
            save_optimizer(folder, cast(nn.Module, self.model), cast(torch.optim.Optimizer, self.optimizer))
            write_json(folder / SCHEDULE, cast(LambdaLR, self.lr_scheduler).state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            folder = Path(checkpoint)
            load_optimizer(folder, cast(nn.Module, self.model), cast(torch.optim.Optimizer, self.optimizer))
            cast(LambdaLR, self.lr_scheduler).load_state_dict(read_json(folder / SCHEDULE))

    def _save_rng_state(self, output_dir: str) -> None:
        """Nothing: see the module's docstring."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing was saved."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = output_folder(self.args) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        # The folder may be an older whole one that a run from an earlier checkpoint now writes again.
        (folder / WHOLE).unlink(missing_ok=True)
        # Older checkpoints go when this one is whole, not before.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        super()._save_checkpoint(model, trial)
        self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle of the arguments, which nothing reads
            self.text_tokenizer.save_pretrained(folder)
            write_json(folder / WHOLE, _sizes(folder))
            rotate_checkpoints(
                str(folder.parent), save_total_limit=limit, best_model_checkpoint=self.state.best_model_checkpoint
            )


def last_whole_checkpoint(output_dir: Path) -> Path | None:
    """The checkpoint of the highest step that was written to its end, or None."""
    folders = [path.parent for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{WHOLE}")]
    whole = [folder for folder in folders if read_json(folder / WHOLE) == _sizes(folder)]
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def _logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    outputs = model(input_ids=inputs["input_ids"], logits_to_keep=inputs["targets"].shape[1], use_cache=False)
    logits: Tensor = outputs.logits
    return logits


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != WHOLE)
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}
