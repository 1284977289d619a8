"""The sampling engine on vLLM, in the trainer's process and on its device, with a copy of the policy's weights.

The copy is renewed in memory at each `sync` and proved: tiny samples of it are scored by the trainer. Between sampling
and the next `sync` it can sleep, so that the trainer has the device's memory. Groups are sampled while earlier ones
are judged; while the trainer decodes a group, sampling waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from emu3.mllm.generate import Request
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.mllm.vllm.sampler import VllmSampler
from emu3.mllm.vllm.start import VllmSettings
from rl.config import ComputeConfig, RolloutConfig
from rl.rollout.convert import requests_of, rollouts_of
from rl.rollout.probe import MOST, SEEDS, check_gap, logprob_gap, probe_prompt
from rl.rollout.protocol import Prompt, Rollout
from rl.training.protocol import Trainer


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
        self._max_gap = MOST[compute.precision] if compute.max_probe_gap is None else compute.max_probe_gap
        self._device = device
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        answers = settings.prompts_of_rank(ranks) * settings.group_size
        self._sampler = VllmSampler(
            trainer.model.config,
            VllmSettings(
                dtype=torch.bfloat16 if compute.precision == "bf16" else torch.float32,
                max_sequences=min(settings.vllm.max_sequences, answers),
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
