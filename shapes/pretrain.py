"""Pretrain the little model, which stands for what BAAI did with Emu3 before anybody fine-tuned it.

    python -m shapes.pretrain --model init --data tokens/simple tokens/complex --output base
    python -m emu3.launch --ranks 2 shapes.pretrain ...

The objective is that of SFT, on the same pairs; what differs is the optimizer. From random weights AdamW waits for a
moment at which the model finds out how to copy the source and to look words up in it, and that moment comes a thousand
steps sooner or later with the seed, so that whatever was built on it differed by two points between seeds. Muon (Jordan
et al., 2024), whose updates go equally far in all directions of a weight matrix, has no such wait: after 1,500 steps
the loss on changed codes is a fifth of AdamW's (docs/study.md). Biases, norms and embeddings keep AdamW.

It takes three minutes, so there are no checkpoints: what was interrupted begins again. Ranks share a batch.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from emu3.checkpoint_facts import trained_facts
from emu3.errors import UserError, run_main
from emu3.flags import CommandParser
from emu3.mllm.language_model import load_language_model, save_checkpoint
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.settings import COUNT, SEED, number_in
from emu3.train_image_editing.dataset import Collator, EncodedRows, Mixture
from emu3.train_image_editing.objective import TargetLosses, weighted_sum
from emu3.train_image_editing.shards import check_alike, read_rows
from emu3.training import ranks

WARMUP = 50  # steps
LAST_RATE = 0.05  # of the learning rate, at the end of its cosine


@dataclass(frozen=True)
class PretrainSpec:
    """Steps of `batch_size` rows. coefficients: passes over each dataset per pass; None upsamples to the largest.

    learning_rate: of both optimizers; Muon's updates are scaled to the size that AdamW's have (Liu et al., 2025).
    changed_token_weight: loss weight of the target codes that differ from the source, as in SFT.
    """

    steps: int = 1500
    batch_size: int = 16
    learning_rate: float = 2e-3
    coefficients: tuple[float, ...] | None = None
    changed_token_weight: float = 4.0
    seed: int = 0


def pretrain(model_folder: Path, data: list[Path], output: Path, spec: PretrainSpec) -> None:
    """Write a checkpoint folder. Raises UserError for data that do not fit the model or each other."""
    rank, world = _place()
    if spec.batch_size % world:
        raise UserError(f"a batch of {spec.batch_size} rows cannot be shared by {world} ranks: name a multiple")
    tokenizer = TextTokenizer.from_pretrained(model_folder)
    model = load_language_model(model_folder).train()
    model.set_attn_implementation("sdpa")
    datasets = [read_rows(folder) for folder in data]
    check_alike(datasets, {})
    parts = [EncodedRows(rows, tokenizer, [], model.config.max_position_embeddings) for rows in datasets]
    stream = Mixture([len(part) for part in parts], spec.coefficients, spec.seed).stream()
    collate = Collator(tokenizer.layout.pad, spec.changed_token_weight)
    losses, optimizers = TargetLosses(model), _optimizers(model, spec.learning_rate)
    progress = tqdm(range(spec.steps), desc="pretraining", unit="step", mininterval=5, disable=rank > 0)
    for step in progress:
        # 1. this rank's part of the batch
        pairs = list(islice(stream, spec.batch_size))[rank::world]
        batch = collate([parts[dataset][row] for dataset, row in pairs])
        # 2. the loss per weight of the whole batch's target tokens
        weight = _summed(batch["weights"].sum())
        loss = weighted_sum(losses(batch["input_ids"], batch["targets"]), batch["targets"], batch["weights"]) / weight
        loss.backward()
        _sum_gradients(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        # 3. both optimizers at the rate of this step
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = spec.learning_rate * _rate(step, spec.steps)
            optimizer.step()
            optimizer.zero_grad()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{_summed(loss.detach()):.4f}", refresh=False)
    if rank == 0:
        save_checkpoint(model.eval(), tokenizer, output, facts=trained_facts(model_folder, data, "pretraining"))
    ranks.meet()


class Muon(torch.optim.Optimizer):
    """Momentum whose every update is made orthogonal, U V' of its singular value decomposition, by Newton-Schulz.

    Matrices only. An update has the size that AdamW's have (Liu et al., 2025, equation 4), 0.2 root mean square: one
    learning rate serves both. Unlike `torch.optim.Muon` it works in float32, on all matrices of one shape at once:
    torch's takes products in bfloat16, which processors without such instructions do twenty times slower.
    """

    def __init__(
        self, matrices: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                alike[matrix.shape].append(matrix)
            for shape, matrices in alike.items():
                gradients = torch.stack([cast(Tensor, matrix.grad) for matrix in matrices])
                mean = self.state[matrices[0]].setdefault("mean", torch.zeros_like(gradients))
                mean.lerp_(gradients, 1 - group["momentum"])
                updates = orthogonalized(gradients.lerp(mean, group["momentum"]))  # Nesterov's look ahead
                size = 0.2 * math.sqrt(max(shape))
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"] * size)


def orthogonalized(matrices: Tensor) -> Tensor:
    """float (N, R, C) -> the same with singular values of 0.7 to 1.2, but for those that were close to 0: five steps of
    Jordan et al.'s quintic iteration, whose coefficients are chosen for speed and not for convergence."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


def _optimizers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for everything else."""
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and ".layers." in name else rest).append(parameter)
    return [Muon(matrices, rate), torch.optim.AdamW(rest, lr=rate, weight_decay=0.0, betas=(0.9, 0.95), fused=True)]


def _rate(step: int, steps: int) -> float:
    """Share of the learning rate: a linear warmup under a cosine that ends at `LAST_RATE`."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / WARMUP) * (LAST_RATE + (1 - LAST_RATE) * cosine)


def _place() -> tuple[int, int]:
    """This rank, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _summed(value: Tensor) -> Tensor:
    """Over the ranks."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def _sum_gradients(model: nn.Module) -> None:
    if dist.is_initialized():
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        flat = _summed(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def main() -> None:
    default = PretrainSpec()
    parser = CommandParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint with random weights (shapes.new_model)")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="tokenized datasets (prepare_data)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=COUNT, default=default.steps, help=f"optimizer steps (default {default.steps})")
    parser.add_argument("--batch-size", type=COUNT, default=default.batch_size, help="rows of a step (default 16)")
    parser.add_argument(
        "--learning-rate", type=number_in(float, least=0, most=1), default=default.learning_rate, help="default 0.002"
    )
    parser.add_argument(
        "--coefficients", type=number_in(float, least=0, most=1000), nargs="+", help="of each dataset, in passes"
    )
    parser.add_argument("--seed", type=SEED, default=default.seed, help="of the order of the rows (default 0)")
    options = parser.parse_args()
    shares = None if options.coefficients is None else tuple(options.coefficients)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    spec = PretrainSpec(options.steps, options.batch_size, options.learning_rate, shares, seed=options.seed)
    pretrain(options.model, options.data, options.output, spec)


if __name__ == "__main__":
    run_main(main)
