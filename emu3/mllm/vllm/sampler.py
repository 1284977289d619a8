"""`emu3.mllm.generate` on vLLM: requests in, groups of samples out, each group as soon as it is finished.

Every sample is a vLLM request of its own, with a seed of its own; a group's prompt is computed once, by vLLM's prefix
cache. A plain request has its header in the prompt, and both kinds end with `eof`: what the grammar forces behind it
is not computed. The end of a row is: a pass of the model for each.

Samples are not those of `generate` for the same seeds, but of the same distribution. A sample is a function of its
seed, its request and the model, up to rounding, as there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Emu3ForCausalLM, Emu3TextConfig

from emu3.mllm.generate import Completion, Request, check_settings, think_budget
from emu3.mllm.layout import THINK_TOKENS
from emu3.mllm.vllm.llm_engine import VllmSettings, start_engine
from emu3.mllm.vllm.rules import CompletionRule


@dataclass
class Preemptions:
    """Where the cache is too small for all that runs, vLLM drops the keys and values of the newest request and computes
    them again when there is room. requests: how often it did. tokens: how many were computed twice, unless the prefix
    cache still had them."""

    requests: int = 0
    tokens: int = 0


class VllmSampler:
    """An engine for models of one config. It holds random weights until `load` has been called.

    preemptions: since it was made; the first are reported on stderr, once.

    Raises UserError where vLLM cannot run (`start.start_engine`).
    """

    def __init__(self, config: Emu3TextConfig, settings: VllmSettings, device: torch.device) -> None:
        self._config = config
        self._device = device
        self._engine = start_engine(config, settings, device)
        self._sleep = settings.sleep
        self._asleep = False
        self.preemptions = Preemptions()
        _count_preemptions(self._engine, self.preemptions)
        self._reported = False

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take new weights, named as in a checkpoint and whole, and forget every key and value of the old ones.

        The tensors may be of any floating-point dtype and on any device, and are read one after the other. A sleeping
        engine wakes up.
        """
        if self._asleep:
            if self._device.type == "cuda":
                torch.cuda.empty_cache()  # vLLM's memory comes from outside torch's pool
            self._engine.wake_up(["weights"])
        named = with_head(weights, tied=self._config.tie_word_embeddings)
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": named})
        if self._asleep:
            self._engine.wake_up(["kv_cache"])
            self._asleep = False
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM is at work: its prefix cache cannot be emptied")

    def sleep(self) -> None:
        """Give weights and cache up until the next `load`, where the settings say so; on a CPU nothing is freed."""
        if self._sleep and not self._asleep:
            self._engine.sleep(level=2)
            self._asleep = True

    def sample(
        self,
        requests: Sequence[Request],
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        think_tokens: int = THINK_TOKENS,
    ) -> Iterator[list[Completion]]:
        """Complete every request: one list of samples per request, in order, each as soon as it and those before it are
        finished. While the caller works on one, nothing is computed.

        The settings and the errors are those of `emu3.mllm.generate.generate`, but for `top_k`: log-probabilities are
        those after the cut. The caller checks that the completions fit the model (`check_fits`).
        """
        check_settings(temperature, top_k, think_tokens)
        if self._asleep:
            raise RuntimeError("the engine sleeps: it has no weights until the next load")
        positions = self._config.max_position_embeddings
        budgets = [think_budget(positions, request, think_tokens) if request.think else None for request in requests]
        rules = [CompletionRule(r.grammar, budget) for r, budget in zip(requests, budgets, strict=True)]
        places: dict[str, tuple[int, int]] = {}
        running: dict[str, str] = {}
        try:
            for index, (request, rule) in enumerate(zip(requests, rules, strict=True)):
                prompt = {"prompt_token_ids": [*request.prompt, *rule.opening]}
                for sample, seed in enumerate(request.seeds):
                    name = f"{index}-{sample}"
                    places[name] = index, sample
                    params = _sampling_params(rule, seed, temperature, top_k)
                    running[name] = self._engine.add_request(name, prompt, params)
            found: list[dict[int, Completion]] = [{} for _ in requests]
            for group, request in zip(found, requests, strict=True):
                while len(group) < len(request.seeds):
                    for output in self._step():
                        index, sample = places[output.request_id]
                        del running[output.request_id]
                        [completion] = output.outputs
                        found[index][sample] = _sample(
                            rules[index], list(completion.token_ids), completion.logprobs.logprobs
                        )
                yield [group[sample] for sample in range(len(request.seeds))]
        finally:
            if running:
                self._engine.abort_request(list(running.values()), internal=True)
            if self.preemptions.requests and not self._reported:
                self._reported = True
                print(
                    f"vLLM's cache of {_cache_tokens(self._engine)} tokens is too small for what is sampled at once: "
                    f"{self.preemptions.requests} requests were interrupted and {self.preemptions.tokens} tokens "
                    "computed again; give vLLM more memory or let it sample fewer requests at once",
                    file=sys.stderr,
                    flush=True,
                )

    def _step(self) -> list[Any]:
        """One pass of the model for all that is running. The caller's autocast is for a model of another dtype."""
        with torch.autocast(self._device.type, enabled=False):
            finished: list[Any] = self._engine.step()
        return finished


def sampler_of(model: Emu3ForCausalLM, max_sequences: int, device: torch.device) -> VllmSampler:
    """An engine on `device`, in `model`'s dtype and with its weights, that has most of the device for itself.

    model: may stay on the CPU. Raises UserError where vLLM cannot run.
    """
    settings = VllmSettings(model.dtype, max_sequences, memory_share=0.8 if device.type == "cuda" else 0.45)
    sampler = VllmSampler(model.config, settings, device)
    sampler.load(named_weights(model))
    return sampler


def _count_preemptions(engine: Any, counted: Preemptions) -> None:
    """Add to `counted` whenever `engine` preempts. vLLM counts them itself only with statistics, which cost time for
    every token; here it is an addition when it happens."""
    scheduler = engine.engine_core.engine_core.scheduler
    preempt = scheduler._preempt_request

    def counting(request: Any, *arguments: Any, **options: Any) -> None:
        counted.requests += 1
        counted.tokens += request.num_computed_tokens
        preempt(request, *arguments, **options)

    scheduler._preempt_request = counting


def _cache_tokens(engine: Any) -> int:
    """Tokens whose keys and values fit the cache; one block is vLLM's own."""
    cache = engine.vllm_config.cache_config
    return int((cache.num_gpu_blocks - 1) * cache.block_size)


def seed_number(seed: tuple[int, ...]) -> int:
    """vLLM's seed, 63 bits, of a sample's."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _sampling_params(rule: CompletionRule, seed: tuple[int, ...], temperature: float, top_k: int | None) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=temperature,
        top_k=top_k or 0,
        seed=seed_number(seed),
        max_tokens=rule.most_tokens,
        stop_token_ids=[rule.grammar.layout.eof],
        ignore_eos=True,
        logprobs=0,  # of the drawn token and no other
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args=rule.arguments(),
    )


def _sample(rule: CompletionRule, drawn: list[int], logprobs: list[float]) -> Completion:
    """Put a sample together. Raises ValueError if it breaks the grammar, FloatingPointError if it is not finite."""
    grammar, opening = rule.grammar, rule.opening
    if not np.isfinite(logprobs).all():
        raise FloatingPointError("the model's probabilities are not finite: its weights have diverged")
    tokens = [*opening, *drawn, grammar.layout.eoi, grammar.layout.eos]
    boi = len(tokens) - grammar.length - 1
    thinks = rule.think_tokens is not None
    return Completion(
        tokens=tokens,
        logprobs=np.array([*[0.0] * len(opening), *logprobs, 0.0, 0.0], dtype=np.float32),
        codes=np.array(grammar.codes(tokens[boi + 1 :]), dtype=np.uint16),
        reasoning=tokens[:boi] if thinks else None,
        cut=boi == rule.think_tokens,
    )


EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of each parameter of a whole `Emu3ForCausalLM`; a shared one once."""
    for name, parameter in model.named_parameters():
        yield name, parameter.detach()


def with_head(weights: Iterable[tuple[str, Tensor]], *, tied: bool) -> Iterator[tuple[str, Tensor]]:
    """`weights` and, where the head shares the embeddings (`tied`), the head as a tensor of its own.

    vLLM keeps a packed copy of a head on CPUs, shared or not, and an update in place renews it only if it is named.
    """
    for name, tensor in weights:
        if not (tied and name == HEAD):
            yield name, tensor
        if tied and name == EMBEDDINGS:
            yield HEAD, tensor
