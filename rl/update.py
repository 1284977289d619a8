"""The optimizer steps of one batch of judged rollouts, and the reference's log-probabilities of them.

Gradients are sums over micro-batches and ranks with one common denominator, so that the micro-batch size changes
nothing. The reference is asked about all rollouts of a step before their scores are known: its batches do not depend on
them, and the judge works meanwhile. What it says of groups that turn out to prefer nothing is computed in vain.

Axes on names: N scored tokens of a micro-batch, flat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from emu3.errors import UserError
from rl.config import Config, ObjectiveConfig
from rl.logprobs import Batch, pack
from rl.losses import Tokens, Totals, k3, objective_of, outside_clip
from rl.rollout.engine import Prompt, Rollout
from rl.training.policy import Reference, Trainer

Row = tuple[Prompt, Rollout]
T = TypeVar("T")


@dataclass(frozen=True)
class PolicyUpdate:
    """How a run trains on rollouts. longest: scored tokens of a completion at most."""

    config: Config
    accelerator: Accelerator
    trainer: Trainer
    reference: Reference | None
    longest: int

    def reference_logprobs(self, rows: Sequence[Row], filler: Row) -> list[Tensor]:
        """The reference's log-probabilities of each rollout's scored tokens, (N,) per row, in the order of a `Batch`;
        nothing without a KL term. filler: any rollout, for passes that only keep step with other ranks."""
        if self.reference is None:
            return []
        batches, own = self._batches(rows, filler)
        found = self.reference.logprobs(batches)[:own]
        sizes = map(len, self._chunks(rows))
        return [
            logprobs_N[batch.row_N == row]
            for batch, logprobs_N, size in zip(batches, found, sizes, strict=False)
            for row in range(size)
        ]

    def __call__(
        self, rows: Sequence[Row], references: Sequence[Tensor], advantages: Tensor, lr: float, filler: Row
    ) -> dict[str, float | None]:
        """Train on this rank's rollouts, each with an advantage and what `reference_logprobs` gave. The metrics are
        those of the first optimizer step, but for `clip_share`: that of the last. filler: as there."""
        config, accelerator, trainer = self.config, self.accelerator, self.trainer
        objective, device = config.objective, accelerator.device
        batches, own = self._batches(rows, filler)
        advantages_N = [
            part.to(device)[batch.row_N]
            for batch, part in zip(batches, advantages.split(config.compute.micro_batch), strict=False)
        ][:own]
        references_N = [_in_batch(batch, part) for batch, part in zip(batches, self._chunks(references), strict=False)]
        # Scored tokens of each token's completion.
        lengths_N = [torch.bincount(batch.row_N)[batch.row_N] for batch in batches[:own]]
        counts = [sum(map(len, advantages_N)), sum(batch.codes for batch in batches[:own]), len(rows)]
        own_counts = torch.tensor(counts, device=device)
        tokens, codes, completions = accelerator.reduce(own_counts, reduction="sum").tolist()
        if tokens == 0:  # no group prefers anything; a step would only follow the optimizer's old momentum
            entropies = ("entropy", "entropy_codes", "entropy_text")
            unknown = ("loss", "kl", *entropies, "logprob_gap", "mismatch_kl", "clip_share", "grad_norm")
            return {**dict.fromkeys(unknown), "trained_tokens": 0}
        totals = Totals(
            tokens=tokens,
            completions=completions,
            longest=self.longest,
            rank_tokens=own_counts[0].item() * accelerator.num_processes,
        )

        loss_of = objective_of(objective)
        old: list[Tensor] = []
        metrics: dict[str, float | None] = {}
        for update in range(objective.updates):
            sums = torch.zeros(7, device=device)
            for index, batch in enumerate(batches):
                logprobs_N, entropy_N = trainer.score(batch)
                last = index + 1 == len(batches)
                if index >= own:
                    trainer.backward(0 * logprobs_N.sum(), last=last)
                    continue
                if update == 0:
                    old.append(logprobs_N.detach())
                reference_N = references_N[index] if references_N else None
                part = Tokens(
                    logprobs_N, old[index], batch.sampled_N, reference_N, advantages_N[index], lengths_N[index]
                )
                loss = loss_of(part, totals, objective)
                trainer.backward(loss, last=last)
                sums += _sums(loss, part, entropy_N, batch.codes, objective)
            norm = trainer.step(lr)
            if not math.isfinite(norm):
                raise UserError(
                    f"the gradient's norm is {norm}: the run diverged; start a new one with a lower optimizer.lr"
                )
            loss_sum, kl_sum, code_entropy, text_entropy, gap_sum, mismatch_sum, clipped = accelerator.reduce(
                sums, reduction="sum"
            ).tolist()
            if update == 0:
                metrics = {
                    "loss": loss_sum,
                    "kl": kl_sum / tokens if self.reference is not None else None,
                    "entropy": (code_entropy + text_entropy) / tokens,
                    "entropy_codes": code_entropy / codes,
                    "entropy_text": text_entropy / (tokens - codes) if tokens > codes else None,
                    "logprob_gap": gap_sum / codes,
                    "mismatch_kl": mismatch_sum / codes,
                    "grad_norm": norm,
                    "trained_tokens": tokens,
                }
                if gap_sum / codes > config.compute.max_logprob_gap:
                    raise UserError(
                        f"sampler and trainer differ by {gap_sum / codes:.3f} nats per token, more than "
                        f"compute.max_logprob_gap={config.compute.max_logprob_gap}: they do not hold the same weights"
                    )
            metrics["clip_share"] = clipped / tokens
        return metrics

    def _chunks(self, rows: Sequence[T]) -> list[Sequence[T]]:
        size = self.config.compute.micro_batch
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _batches(self, rows: Sequence[Row], filler: Row) -> tuple[list[Batch], int]:
        """Micro-batches of `rows`, and how many; behind them fillers up to the number of the rank that has most, where
        ranks have to keep step."""
        packed = partial(
            pack,
            scheme=self.config.objective.scheme,
            think_tokens=self.config.rollout.think_tokens,
            device=self.accelerator.device,
        )
        batches = [packed(chunk) for chunk in self._chunks(rows)]
        own = len(batches)
        if self.trainer.lockstep:
            passes = self.accelerator.gather(torch.tensor([own], device=self.accelerator.device)).max().item()
            batches += [packed([filler])] * (int(passes) - own)
        return batches, own


def _in_batch(batch: Batch, rows: Sequence[Tensor]) -> Tensor:
    """(N,): one value per scored token of `batch`, from those of each rollout in the same order."""
    values_N = torch.empty_like(batch.sampled_N, dtype=rows[0].dtype)
    for row, values in enumerate(rows):
        values_N[batch.row_N == row] = values
    return values_N


@torch.no_grad()
def _sums(loss: Tensor, part: Tokens, entropy_N: Tensor, codes: int, objective: ObjectiveConfig) -> Tensor:
    """Over tokens, summed: loss, KL, entropy of codes, entropy of the others, distance to the sampler's
    log-probabilities, KL from it, and how many ratios are outside the preset's clip: (7,)."""
    logprobs_N = part.logprobs_N
    kl_N = torch.zeros_like(logprobs_N) if part.reference_N is None else k3(logprobs_N, part.reference_N)
    # Over codes: what the paper's scheme scores besides, it scores under another distribution than the sampler.
    ours_N, sampled_N = logprobs_N[:codes], part.sampled_N[:codes]
    gap, mismatch = (ours_N - sampled_N).abs().sum(), k3(sampled_N, ours_N).sum()
    entropies = [entropy_N[:codes].sum(), entropy_N[codes:].sum()]
    return torch.stack([loss.detach(), kl_N.sum(), *entropies, gap, mismatch, outside_clip(part, objective).sum()])
