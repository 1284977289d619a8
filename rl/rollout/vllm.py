"""The sampling engine on vLLM, in the trainer's process and on its device, with a copy of the policy's weights.

The copy is renewed in memory at each `sync` and checked. Between sampling and the next `sync` it can sleep, so that the
trainer has the device's memory. Groups are sampled while earlier ones are judged; while the trainer decodes a group,
sampling waits.

The weight-sync check: a few tiny grids behind a prompt of one token, sampled as every rollout is, are scored by the
trainer as it scores them. Grammar, temperature and weights are in it, so the gap is rounding if both sides agree in all
three. Measured between vLLM and the trainer on a CPU, random models of 2 x 128 to 16 x 1,024 layers and channels, means
over 64 codes of 4,096, by the entropy of a code (in nats; a uniform one has 8.3):

| gap, nats per code              | 8.2 | 7.7 | 5.9 |
|---|---|---|---|
| float32                         | 3e-7 to 1e-6 | 1e-6 to 5e-6 | 2e-6 to 2e-5 |
| bfloat16                        | 0.003 to 0.004 | 0.012 to 0.030 | 0.04 to 0.17 |
| float32, weights off by 1e-5    | 2e-4 to 0.001 | 3e-4 to 0.004 | 8e-4 to 0.008 |
| bfloat16, weights off by 1e-3   | 0.02 to 0.12 | 0.04 to 0.37 | 0.10 to 0.74 |

In bfloat16 it is the layers that differ, not the head (`head_logits`), and the deeper and the more certain a random
model is, the more it magnifies their rounding. So the bound of bfloat16 finds weights that were never set, forgotten
tensors and another temperature, not a step or two that were missed; that of float32 finds weights off by 1e-4, in deep
models by 1e-5, and leaves room for attention in TF32 on GPUs, which has not been measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from emu3.errors import UserError
from emu3.mllm.generate import Request
from emu3.mllm.layout import GridGrammar, TokenLayout
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.mllm.vllm.llm_engine import VllmSettings
from emu3.mllm.vllm.sampler import VllmSampler
from rl.config import ComputeConfig, RolloutConfig
from rl.logprobs import pack
from rl.rollout.engine import Prompt, Rollout, requests_of, rollouts_of
from rl.training.policy import Trainer


class VllmEngine:
    """A `RolloutEngine` for `trainer`'s policy, without weights until the first `sync`.

    Raises UserError where vLLM cannot run.
    """

    probe_gap: float | None = None

    def __init__(
        self,
        trainer: Trainer,
        tokenizer: TextTokenizer,
        settings: RolloutConfig,
        compute: ComputeConfig,
        device: torch.device,
    ) -> None:
        self._trainer = trainer
        self._tokenizer = tokenizer
        self._settings = settings
        rounded = "bf16" in (compute.precision, compute.product)  # vLLM has products of its own
        self._max_gap = MOST["bf16" if rounded else "fp32"] if compute.max_probe_gap is None else compute.max_probe_gap
        self._device = device
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        completions = settings.prompts_of_rank(ranks) * settings.group_size
        self._sampler = VllmSampler(
            trainer.model.config,
            VllmSettings(
                dtype=torch.bfloat16 if compute.precision == "bf16" else torch.float32,
                max_sequences=min(settings.vllm.max_sequences, completions),
                memory_share=settings.vllm.memory_share,
                sleep=settings.vllm.sleep,
                max_batched_tokens=settings.vllm.max_batched_tokens,
            ),
            device,
        )

    @property
    def preempted(self) -> tuple[int, int]:
        preemptions = self._sampler.preemptions
        return preemptions.requests, preemptions.tokens

    def sample(self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[tuple[int, ...]]]) -> Iterator[list[Rollout]]:
        think_tokens = self._settings.think_tokens
        requests = requests_of(prompts, seeds, think_tokens)
        for group in self._sampler.sample(requests, temperature=self._settings.temperature, think_tokens=think_tokens):
            yield rollouts_of(group, self._tokenizer)

    def sleep(self) -> None:
        self._sampler.sleep()

    def sync(self) -> None:
        self._sampler.load(self._trainer.named_weights())
        prompt = probe_prompt(self._tokenizer.layout)
        request = Request(prompt.ids, prompt.grammar, SEEDS)
        [group] = self._sampler.sample([request], temperature=self._settings.temperature)
        self.probe_gap = logprob_gap(self._trainer, prompt, rollouts_of(group, self._tokenizer), self._device)
        check_gap(self.probe_gap, self._max_gap)


SIDE = 4
MOST = {"fp32": 0.005, "bf16": 0.1}  # by the precision of the trainer's products; nats per code
SEEDS = tuple((0, sample) for sample in range(4))


def probe_prompt(layout: TokenLayout) -> Prompt:
    """The same one each time; it is completed without thinking, which would take most of the time."""
    grammar = GridGrammar(layout, SIDE, SIDE, size_ids=(0,))
    return Prompt("probe", (layout.bos,), grammar, np.zeros((SIDE, SIDE), np.uint16), "", None)


@torch.no_grad()
def logprob_gap(trainer: Trainer, prompt: Prompt, rollouts: Sequence[Rollout], device: torch.device) -> float:
    """Mean distance, in nats per code, between the log-probabilities of the sampler and of `trainer`.

    rollouts: without thinking. All ranks call at once.
    """
    batch = pack([(prompt, rollout) for rollout in rollouts], "grammar", 0, device)
    scored_N, _ = trainer.score(batch)
    return (scored_N - batch.sampled_N).abs().mean().item()


def check_gap(gap: float, most: float) -> None:
    """Raise UserError if `gap`, in nats per code, is above `most` or not a number."""
    if not gap <= most:
        raise UserError(
            f"sampler and trainer differ by {gap:.3g} nats per code on a probe, more than compute.max_probe_gap="
            f"{most}: they do not hold the same weights"
        )
