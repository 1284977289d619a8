"""transformers' Trainer with this project's loss, on one process or sharded by DeepSpeed, and checkpoints by parameter.

The Trainer keeps what it is good at: accumulation, mixed precision, DDP, DeepSpeed, schedules, logging. Replaced are
- the loss and its normalization: the Trainer's own count is of tokens, here an optimizer step is divided by the summed
  weight of its target tokens on all ranks. DDP and DeepSpeed average gradients over ranks, hence the factor
  `num_processes`;
- checkpoints: whole or absent, without pickles, and by parameter under DeepSpeed too (`emu3.training.state`), so
  that a run may go on with another number of ranks. No random state is stored: the order of the rows is a function of
  the seed, dropout one of seed, step, micro-batch, rank and layer;
- what DeepSpeed lacks of an optimizer, without which transformers' schedules with a least rate end before the first
  step.
"""

from __future__ import annotations

import math
import os
import resource
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    Emu3ForCausalLM,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from emu3.checkpoint_facts import CheckpointFacts, write_facts
from emu3.errors import UserError, one_line
from emu3.files import read_json, whole_folder, write_json
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.report.metrics_file import Spared
from emu3.train_image_editing.metrics import MetricsLog, output_folder
from emu3.train_image_editing.objective import Dropout, TargetLosses, mean_per_row, weighted_sum
from emu3.training import ranks
from emu3.training.checkpoints import fault_of, numbered, rotate, write_note
from emu3.training.ranks import Stopping
from emu3.training.state import (
    ADAPTER,
    WRITE_ERRORS,
    adapters,
    collected,
    gathered,
    load_optimizer,
    load_sharded,
    merged,
    save_optimizer,
    save_sharded,
)

STEM, WHOLE, SCHEDULE = f"{PREFIX_CHECKPOINT_DIR}-", "whole.json", "schedule.json"


class EditTrainer(Trainer):
    """Trains on batches of `dataset.Collator`.

    Takes Trainer's arguments, the model as an `Emu3ForCausalLM`, and: text_tokenizer, whose files go into every
    checkpoint, so that each can be sampled from; dropout, a rate from 0 to below 1; patience, evaluations without a
    smaller loss after which training stops, None for none; lora, whether the model has adapters; facts, what a
    checkpoint says about itself, but for its steps; stop, of a process that saves and ends by a signal.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        model: Emu3ForCausalLM,
        text_tokenizer: TextTokenizer,
        dropout: float = 0.0,
        patience: int | None = None,
        lora: bool = False,
        stop: Stopping | None = None,
        facts: CheckpointFacts | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=TargetLosses(model), **kwargs)
        self.language_model = model
        self.text_tokenizer = text_tokenizer
        self._lora = lora
        self._facts = facts
        self._dropout = Dropout(model, dropout, self.args.seed, self.args.process_index) if dropout else None
        self._micro_batch = 0
        self.saved_steps = 0  # of the newest checkpoint that this process has written
        self._tokens, self._steps, self._seconds, self._since = 0, 0, 0.0, time.perf_counter()
        for noisy in (ProgressCallback, PrinterCallback):
            self.remove_callback(noisy)
        spared = Spared()
        self.callback_handler.callbacks = [
            SparedTracker(callback, spared) if "integration" in type(callback).__module__ else callback
            for callback in self.callback_handler.callbacks
        ]
        self.add_callback(MetricsLog())
        if patience is not None:
            self.add_callback(StopOnPlateau(patience))
        if stop is not None:
            self.add_callback(SaveAndStop(stop))

    # A step.

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """The micro-batches of one optimizer step, and the weight of their target tokens on all ranks."""
        self._since, self._micro_batch = time.perf_counter(), 0
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        weight = sum(batch["weights"].sum(dtype=torch.float64) for batch in batches)
        tokens = sum(batch["lengths"].sum() for batch in batches)
        counts = torch.tensor([float(weight), float(tokens)], dtype=torch.float64, device=device)
        if self.accelerator.num_processes > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        self._tokens, self._steps = self._tokens + int(counts[1]), self._steps + 1
        return batches, counts[0]

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of a micro-batch, under dropout masks of its own."""
        if self._dropout is not None:
            self._dropout.at(self.state.global_step, self._micro_batch)
        self._micro_batch += 1
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's share of the step's weighted mean; `num_items_in_batch` is the weight of the step."""
        assert num_items_in_batch is not None and not return_outputs
        losses = model(inputs["input_ids"], inputs["targets"])
        loss = weighted_sum(losses, inputs["targets"], inputs["weights"])
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
        with torch.no_grad(), self.compute_loss_context_manager():
            losses = model(inputs["input_ids"], inputs["targets"])
        return mean_per_row(losses, inputs["targets"]).mean(), None, None

    def _maybe_log_save_evaluate(
        self, tr_loss: Tensor, grad_norm: Tensor | float | None, *arguments: Any, **options: Any
    ) -> None:
        """After each step. Raises UserError before anything is written of a run that has diverged."""
        now = time.perf_counter()
        self._seconds, self._since = self._seconds + now - self._since, now
        for name, value in (("loss", tr_loss), ("gradient's norm", grad_norm)):
            if value is not None and not math.isfinite(value):
                raise UserError(
                    f"step {self.state.global_step}: the {name} is {float(value)}, the run diverged; start a new one "
                    "with a lower --learning_rate in another --output_dir"
                )
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *arguments, **options)

    def _run_epoch(self, *arguments: Any, **options: Any) -> None:
        """The pass's own rows; none for a run that went on from its last step: the Trainer would take one more."""
        self.control.should_training_stop |= self.state.global_step >= self.state.max_steps
        if not self.control.should_training_stop:
            cast(Any, self.train_dataset).set_epoch(options["epoch"])
            super()._run_epoch(*arguments, **options)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds, since the entry before: steps; tokens, read without padding on all ranks; seconds of these steps,
        without evaluating and saving. And memory_gb, this rank's peak, of its GPU or else of its process."""
        if "loss" in logs:
            logs |= {"steps": self._steps, "tokens": self._tokens, "seconds": self._seconds}
            logs["memory_gb"] = _peak_memory(self.args.device)
            self._tokens, self._steps, self._seconds = 0, 0, 0.0
        super().log(logs, start_time)

    # Preparing, and going on from a checkpoint. Its weights are those that the model was made with.

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        for wrapper in (optimizer, self.optimizer):
            sharded: Any = getattr(wrapper, "optimizer", None)  # DeepSpeed's, around torch's own
            if hasattr(sharded, "optimizer") and not hasattr(sharded, "defaults"):
                sharded.defaults = sharded.optimizer.defaults
        return super().create_scheduler(num_training_steps, optimizer)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        ranks.meet()  # they were loading
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        # DeepSpeed's own groups have the backend's default, NCCL's ten minutes.
        ranks.set_device_timeout(timedelta(seconds=self.args.ddp_timeout))
        head = self.language_model.lm_head.weight
        if hasattr(head, "ds_id"):
            import deepspeed

            deepspeed.zero.register_external_parameter(self.model, head)
        if resume_from_checkpoint is not None:
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing: see above."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder, schedule = Path(checkpoint), _schedule(self.lr_scheduler)
        schedule.load_state_dict(read_json(folder / SCHEDULE))
        if self.is_deepspeed_enabled:
            engine: Any = self.deepspeed
            load_sharded(folder, engine, self.language_model)
            for group, rate in zip(engine.optimizer.param_groups, schedule.get_last_lr(), strict=True):
                group["lr"] = rate
        else:
            load_optimizer(folder, self.language_model, cast(torch.optim.Optimizer, self.optimizer))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing was saved."""

    def _load_best_model(self) -> None:
        """Nothing: `save_final` takes the best checkpoint's files."""

    # Saving.

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Whole or absent, and older ones go afterwards. A disk that cannot take it costs this checkpoint alone."""
        run, step = output_folder(self.args), self.state.global_step
        folder = run / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        best = self._best()
        self.state.best_model_checkpoint = None if best is None else str(best)
        try:
            with ranks.whole_folder_of_first(folder) as temporary:
                self._write_weights(temporary)
                self._write_optimizer(temporary)
                if temporary is not None:
                    self.state.save_to_json(str(temporary / TRAINER_STATE_NAME))
                    write_note(temporary, WHOLE)
            self.saved_steps = step
            if self.is_world_process_zero() and self.args.save_total_limit:
                also = [Path(self.state.best_model_checkpoint)] if self.state.best_model_checkpoint else []
                rotate(run, STEM, WHOLE, keep=self.args.save_total_limit, written=folder, also=also)
        except WRITE_ERRORS as error:
            if self.is_world_process_zero():
                print(f"no checkpoint of step {step}: {one_line(error)}; the run goes on without", flush=True)
        ranks.meet()

    def save_final(self, folder: Path) -> None:
        """Write the model as the whole of `folder`: weights, config and tokenizer files, as they are now, or those of
        the best checkpoint where the best one was asked for. All ranks have to call it. Raises UserError if the disk
        cannot take it."""
        try:
            if not ranks.on_first(lambda: self._copy_best(folder)):
                with ranks.whole_folder_of_first(folder) as temporary:
                    self._write_weights(temporary)
        except WRITE_ERRORS as error:
            raise UserError(
                f"{folder} was not written: {one_line(error)}; then start the same command again"
            ) from error
        ranks.meet()

    def _copy_best(self, folder: Path) -> bool:
        """Whether the best checkpoint was asked for and is there; then its model is the whole of `folder`."""
        best = self._best() if self.args.load_best_model_at_end else None
        if best is None:
            return False
        if not best.is_dir():
            print(f"{best} was the best checkpoint, but it is not there: {folder} is the last step's", flush=True)
            return False
        with whole_folder(folder) as temporary:
            for path in best.iterdir():
                if not path.name.startswith(("optimizer", ADAPTER, SCHEDULE, TRAINER_STATE_NAME, WHOLE)):
                    shutil.copy2(path, temporary)
        return True

    def _best(self) -> Path | None:
        """Where the checkpoint with the smallest evaluation loss is or is about to be; None before there is one."""
        step = self.state.best_global_step
        return output_folder(self.args) / f"{PREFIX_CHECKPOINT_DIR}-{step}" if step else None

    def _write_weights(self, folder: Path | None) -> None:
        """LoRA merged, and its adapters beside; with a cache for sampling, which the base class turns off for training.
        All ranks take part, those with None write nothing; all have the same errors, so that none is left waiting."""
        model = self.language_model
        state = collected(merged(model, gathered), folder is not None)
        parts = collected(adapters(model, gathered), folder is not None)  # none without LoRA

        def write() -> None:
            assert folder is not None
            model.config.use_cache = model.generation_config.use_cache = True
            model.save_pretrained(folder, state_dict=state)
            self.text_tokenizer.save_pretrained(folder)
            if self._facts is not None:
                write_facts(folder, replace(self._facts, steps=self.state.global_step))
            if self._lora:
                save_file(parts, folder / ADAPTER)

        ranks.on_first(write)

    def _write_optimizer(self, folder: Path | None) -> None:
        if self.is_deepspeed_enabled:
            save_sharded(folder, self.deepspeed, self.language_model)
        elif folder is not None:
            save_optimizer(folder, self.language_model, cast(torch.optim.Optimizer, self.optimizer))
        if folder is not None:
            write_json(folder / SCHEDULE, _schedule(self.lr_scheduler).state_dict())


class SparedTracker(TrainerCallback):
    """A tracker of transformers' (`--report_to`), whose troubles during training cost its curves alone."""

    def __init__(self, tracker: TrainerCallback, spared: Spared) -> None:
        self._tracker, self._spared = tracker, spared

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_") or name == "on_init_end":
            return super().__getattribute__(name)
        event = getattr(self._tracker, name)

        def call(*arguments: Any, **options: Any) -> None:
            with self._spared.output(f"line in {type(self._tracker).__name__.removesuffix('Callback')}", Exception):
                event(*arguments, **options)

        return call


class SaveAndStop(TrainerCallback):
    """Saves and ends training after the step in which a signal came, on all ranks at once."""

    def __init__(self, stop: Stopping) -> None:
        self._stop = stop

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._stop.agreed() and state.global_step < state.max_steps:
            self._stop.acted = True
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False


class StopOnPlateau(TrainerCallback):
    """Ends training after `patience` evaluations in a row without a smaller loss.

    It counts in the run's log, which a checkpoint holds; transformers' own callback begins anew in a resumed run.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A run that was interrupted after its last evaluation ends where it would have."""
        self.on_evaluate(args, state, control)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        since = len(losses) - 1 - losses.index(min(losses)) if losses else 0
        if since >= self._patience:
            control.should_training_stop = True
            if state.is_world_process_zero:
                print(f"the evaluation loss has not become smaller {since} times: training ends here", flush=True)


def last_whole_checkpoint(output_dir: Path) -> Path | None:
    """The checkpoint of the highest step that was written to its end, or None."""
    for _, folder in reversed(numbered(output_dir, STEM)):
        fault = fault_of(folder, WHOLE)
        if fault is None:
            return folder
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"checkpoint {folder} is broken ({fault}); trying the one before", flush=True)
    return None


def _schedule(scheduler: Any) -> LambdaLR:
    """Without the wrapper that it has where DeepSpeed's settings name the optimizer."""
    return cast(LambdaLR, getattr(scheduler, "scheduler", scheduler))


def _peak_memory(device: torch.device) -> float:
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else host) / 1e9
