"""What training, sampling and decoding take at full size, traced on a GPU that is not there. Prints JSON.

    python tests/fake_gpu/passes.py [NAME ...]      --table also prints what was there at each peak
"""

from __future__ import annotations

import device

MODE = device.start()  # before torch is imported

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peak import Peak
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import Emu3ForCausalLM, Emu3TextConfig

sys.path.append(str(Path(__file__).parents[1] / "rl" / "watch"))
from sizes_of_emu3 import settings

from emu3.mllm.grammar import GridGrammar
from emu3.mllm.lanes import Lanes
from emu3.mllm.layout import TokenLayout
from emu3.mllm.sampling import choose
from emu3.tokenizer.codec import ImageCodec
from emu3.tokenizer.config import StillVQConfig
from emu3.tokenizer.model import StillVQ
from emu3.training.head import chosen_logprobs
from emu3.training.lora import add_lora
from rl.config import Config
from rl.logprobs import Batch, pack
from rl.losses import OBJECTIVES, Tokens, Totals
from rl.rollout.protocol import Prompt, Rollout
from rl.shared_prefix import ATTENTION
from rl.training.policy import TokenLogprobs

LAYOUT = TokenLayout()
GRAMMAR = GridGrammar(LAYOUT, 32, 32, (1, 2))
PROMPT = 1100
GRAMMAR_TOKENS = 1 + GRAMMAR.length


def on_gpu(module: nn.Module, dtype: torch.dtype) -> None:
    """Give a module on `meta` fake weights of `dtype` on the GPU; buffers keep theirs."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=dtype, device="cuda")
                part._parameters[name] = nn.Parameter(fake, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")


def language_model(
    config: Config | None, dtype: torch.dtype = torch.bfloat16, checkpointing: bool = True, lora: int | None = None
) -> Any:
    """The 8B policy, with the published class's dropout off as `load_language_model` has it."""
    with unset_fake_temporarily(), torch.device("meta"):
        model = Emu3ForCausalLM(Emu3TextConfig(attention_dropout=0.0))
        if lora is not None:
            add_lora(model, lora, lora, 0)
    on_gpu(model, dtype)
    model.set_attn_implementation(ATTENTION if config else "sdpa")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    else:
        model.eval()
    return model


def freed(model: nn.Module) -> None:
    """A gradient of a weight goes as soon as it is whole: into DeepSpeed's bucket, which is counted elsewhere."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))


def batch_of(config: Config) -> Batch:
    codes = np.zeros((32, 32), np.uint16)
    answer = [*[7] * config.rollout.think_tokens, LAYOUT.boi, *GRAMMAR.answer(codes.tolist())]
    rollout = Rollout(answer, np.zeros(len(answer), np.float32), codes, None)
    prompt = Prompt("", tuple(range(PROMPT)), GRAMMAR, codes, "", None)
    rows = [(prompt, rollout)] * config.compute.micro_batch
    return pack(rows, config.objective.scheme, config.rollout.think_tokens, "cuda")


def train(config: Config, presets: tuple[str, ...] = ("corrected",)) -> Peak:
    """Score a micro-batch, take the losses of `presets` and go backward."""
    weight = torch.bfloat16 if config.compute.zero else torch.float32
    model = language_model(config, weight, config.compute.gradient_checkpointing, config.lora and config.lora.rank)
    freed(model)
    batch = batch_of(config)
    with Peak("cuda", [*model.parameters(), *model.buffers()]) as peak:
        logprobs, _ = TokenLogprobs(model, config)(batch)
        tokens = Tokens(logprobs, logprobs.detach(), batch.sampled_N, batch.sampled_N, *[torch.ones_like(logprobs)] * 2)
        losses = [OBJECTIVES[preset](tokens, Totals(1.0, 1.0, 1.0, 1.0), config.objective) for preset in presets]
        torch.stack(losses).sum().backward()
    return peak


def refer(config: Config) -> Peak:
    """The reference's log-probabilities of a micro-batch."""
    model = language_model(config, checkpointing=False).requires_grad_(False)
    batch = batch_of(config)
    with Peak("cuda", [*model.parameters(), *model.buffers()]) as peak, torch.no_grad():
        TokenLogprobs(model, config)(batch)
    return peak


def sample(config: Config, prompts: int) -> Peak:
    """Run `prompts` prompts, draw the first code of each lane, and feed them."""
    model = language_model(config, checkpointing=False)
    group = config.rollout.group_size
    header = GRAMMAR.free_offsets()[0]
    with Peak("cuda", [*model.parameters(), *model.buffers()]) as peak, torch.no_grad():
        with torch.autocast("cuda", torch.bfloat16):
            lanes = Lanes(model, [tuple(range(PROMPT + 1 + header))] * prompts, group, header + 1 + GRAMMAR.length)
            head = model.lm_head.weight[LAYOUT.first_code :]
            uniform = torch.empty(prompts, group, device="cuda", dtype=torch.float64)
            code, _ = choose(torch.nn.functional.linear(lanes.hidden, head), uniform, 1.0, None)
            lanes.feed((code + LAYOUT.first_code)[:, None])
            print("prefill", peak.peak, peak.table(7))
            peak.restart()
            for layer in lanes._cache.layers:
                layer.used = layer.capacity - group
            lanes._used = lanes._mask.shape[-1] - group
            lanes.feed((code + LAYOUT.first_code)[:, None])
    return peak


def decode(images: int) -> Peak:
    with unset_fake_temporarily(), torch.device("meta"):
        vq = StillVQ(StillVQConfig())
    on_gpu(vq, torch.float32)
    with Peak("cuda", [*vq.parameters(), *vq.buffers()]) as peak, torch.no_grad():
        vq.decode(torch.zeros(images, 32, 32, dtype=torch.long, device="cuda"))
    return peak


def tune(rows: int, lora: int | None = None) -> Peak:
    """A micro-batch of supervised fine-tuning."""
    model = language_model(None, lora=lora)
    freed(model)
    answer = 1 + GRAMMAR.length
    ids = torch.zeros(rows, PROMPT + answer, dtype=torch.long, device="cuda")
    with Peak("cuda", [*model.parameters(), *model.buffers()]) as peak:
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, -answer - 1 : -1].flatten(0, 1)
        logprobs, _ = chosen_logprobs(hidden, model.lm_head.weight, ids[:, -answer:].flatten(), 1.0)
        (-logprobs.sum()).backward()
    return peak


CASES: dict[str, Callable[[], Peak]] = {
    "plain": lambda: train(settings(), ("corrected", "grpo", "dr_grpo", "dapo")),
    "paper": lambda: train(settings(objective={"preset": "paper"}), ("paper",)),
    "think4": lambda: train(settings(rollout={"think_tokens": 512}, compute={"micro_batch": 4})),
    "think8": lambda: train(settings(rollout={"think_tokens": 512})),
    "nockpt": lambda: train(settings(compute={"gradient_checkpointing": False})),
    "lora": lambda: train(settings(lora={"rank": 64}, compute={"reference": "adapter_off"})),
    "lora_nockpt": lambda: train(settings(lora={"rank": 64}, compute={"reference": "adapter_off", "gradient_checkpointing": False})),
    "reference": lambda: refer(settings()),
    "reference_think": lambda: refer(settings(rollout={"think_tokens": 512})),
    "sample": lambda: sample(settings(), 4),
    "decode8": lambda: decode(8),
    "decode9": lambda: decode(9),
    "sft4": lambda: tune(4),
    "sft8": lambda: tune(8),
    "sft4lora": lambda: tune(4,64),
    "whole": lambda: train(settings(compute={"zero": 0, "reference": "resident"})),
}


def main() -> None:
    wanted = [name for name in sys.argv[1:] if not name.startswith("-")] or list(CASES)
    for name in wanted:
        begin = time.process_time()
        with MODE:
            peak = CASES[name]()
        print(json.dumps({"name": name, "peak": peak.peak, "seconds": time.process_time() - begin}), flush=True)
        if "--table" in sys.argv:
            print(peak.table(20))


if __name__ == "__main__":
    main()
