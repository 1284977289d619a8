"""What training, sampling and decoding take at 8B shapes, traced on a GPU that is not there, beside what is counted.

    PYTHONPATH=. python tests/fake_gpu/passes.py [NAME ...] [--table]

Prints a line of JSON for each: name, bytes traced above the weights, bytes counted, attention kernels. --table adds
what was there at the peak. Gradients of weights go as soon as they are whole, as under ZeRO: what holds them is
`shards.py`'s.
"""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS / "common"), str(TESTS / "rl" / "watch")]

import device  # noqa: E402

MODE = device.start()  # before torch is imported

import json  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from peak import Peak  # noqa: E402
from sizes_of_emu3 import settings  # noqa: E402
from torch import nn  # noqa: E402
from torch._subclasses.fake_tensor import unset_fake_temporarily  # noqa: E402
from transformers import Emu3ForCausalLM, Emu3TextConfig  # noqa: E402

from emu3.errors import leave  # noqa: E402
from emu3.mllm.head import choose  # noqa: E402
from emu3.mllm.lanes import Lanes  # noqa: E402
from emu3.mllm.layout import GridGrammar, TokenLayout  # noqa: E402
from emu3.tokenizer.blocks import StillVQConfig  # noqa: E402
from emu3.tokenizer.model import StillVQ  # noqa: E402
from emu3.train_image_editing.objective import TargetLosses, weighted_sum  # noqa: E402
from emu3.training.activations import ModelSizes, Pass, Scored  # noqa: E402
from emu3.training.state import add_lora  # noqa: E402
from rl.config import Config  # noqa: E402
from rl.logprobs import Batch, pack  # noqa: E402
from rl.losses import OBJECTIVES, Tokens, Totals  # noqa: E402
from rl.rollout.engine import Prompt, Rollout  # noqa: E402
from rl.shared_prefix import ATTENTION  # noqa: E402
from rl.training.policy import TokenLogprobs  # noqa: E402
from rl.watch.costs import PROMPT_TOKENS, Sizes, decoding, larger, lora_rank, sampling  # noqa: E402  # noqa: E402

SIDE = 32
LAYOUT = TokenLayout()
GRAMMAR = GridGrammar(LAYOUT, SIDE, SIDE, (1, 2))
ANSWER = 1 + GRAMMAR.length
FORCED = ANSWER - SIDE * SIDE
LAYERS = 32
FEW = 8
"""Layers, of the same widths, where the trace is slow and the rows above have shown what the others do."""


def published(layers: int) -> Emu3TextConfig:
    """The 8B model, without dropout as `load_language_model` has it."""
    return Emu3TextConfig(attention_dropout=0.0, num_hidden_layers=layers)


def sizes(config: Config, layers: int = LAYERS) -> Sizes:
    thinking = config.rollout.think_tokens
    return Sizes(published(layers), StillVQConfig(), 0, 4, completion_tokens=ANSWER + thinking, forced_tokens=FORCED)


def on_gpu(module: nn.Module, dtype: torch.dtype) -> None:
    """Give a module on `meta` fake weights of `dtype` on the GPU; buffers keep theirs."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                fake = torch.empty(weight.shape, dtype=dtype, device="cuda")
                part._parameters[name] = nn.Parameter(fake, weight.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")


def policy(
    attention: str, dtype: torch.dtype, *, checkpointing: bool = False, lora: int | None = None, layers: int = LAYERS
) -> Any:
    with unset_fake_temporarily(), torch.device("meta"):
        model = Emu3ForCausalLM(published(layers))
        if lora is not None:
            add_lora(model, lora, lora, 0)
    on_gpu(model, dtype)
    model.set_attn_implementation(attention)
    model.train(checkpointing)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for weight in model.parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(lambda done: setattr(done, "grad", None))
    return model


class Trace(Peak):
    """A mask has no values here to say how many it chooses: all of them, as in rows of one length."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index.Tensor and args[1][0].dtype == torch.bool:
            given, [mask] = args
            func, args = torch.ops.aten.new_empty.default, (given, [mask.numel(), *given.shape[mask.ndim :]])
        return super().__torch_dispatch__(func, types, args, kwargs)


def traced(module: nn.Module) -> Peak:
    return Trace("cuda", [*module.parameters(), *module.buffers()])


def batch_of(config: Config) -> Batch:
    codes = np.zeros((SIDE, SIDE), np.uint16)
    tokens = [*[7] * config.rollout.think_tokens, LAYOUT.boi, *GRAMMAR.completion(codes.tolist())]
    rollout = Rollout(tokens, np.zeros(len(tokens), np.float32), codes, None)
    prompt = Prompt("", tuple(range(PROMPT_TOKENS)), GRAMMAR, codes, "", None)
    rows = [(prompt, rollout)] * config.compute.micro_batch
    return pack(rows, config.objective.scheme, config.rollout.think_tokens, "cuda")


def train(config: Config, presets: tuple[str, ...], layers: int) -> Peak:
    """Score a micro-batch, take the losses of `presets`, which score the same tokens, and go backward."""
    model = policy(
        ATTENTION,
        torch.bfloat16 if config.compute.zero else torch.float32,
        checkpointing=config.compute.gradient_checkpointing,
        lora=lora_rank(config),
        layers=layers,
    )
    batch, totals = batch_of(config), Totals(1.0, 1.0, 1.0, 1.0)
    with traced(model) as peak:
        logprobs, _ = TokenLogprobs(model, config)(batch)
        ones = torch.ones_like(logprobs)
        tokens = Tokens(logprobs, logprobs.detach(), batch.sampled_N, batch.sampled_N, ones, ones)
        torch.stack([OBJECTIVES[name](tokens, totals, config.objective) for name in presets]).sum().backward()
    return peak


def refer(config: Config) -> Peak:
    """The reference's log-probabilities of a micro-batch."""
    model = policy(ATTENTION, torch.bfloat16).requires_grad_(False)
    batch = batch_of(config)
    with traced(model) as peak, torch.no_grad():
        TokenLogprobs(model, config)(batch)
    return peak


def sample(config: Config, prompts: int) -> Peak:
    """Run the prompts, draw a code for each lane and feed it; and once more with a cache that is as good as full."""
    model, group = policy(ATTENTION, torch.bfloat16), config.rollout.group_size
    with traced(model) as peak, torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        lanes = Lanes(model, [tuple(range(PROMPT_TOKENS))] * prompts, group, ANSWER)
        uniform = torch.empty(prompts, group, device="cuda", dtype=torch.float64)
        for slots in (0, group * (ANSWER - 1)):
            lanes._used += slots
            for layer in lanes._cache.layers:
                layer.used += slots
            code, _ = choose(
                nn.functional.linear(lanes.hidden, model.lm_head.weight[LAYOUT.first_code :]), uniform, 1.0, None
            )
            lanes.feed((code + LAYOUT.first_code)[:, None])
            lanes._used -= group
            for layer in lanes._cache.layers:
                layer.used -= group
    return peak


def decode(images: int) -> Peak:
    with unset_fake_temporarily(), torch.device("meta"):
        vq = StillVQ(StillVQConfig())
    on_gpu(vq, torch.float32)
    with traced(vq) as peak, torch.no_grad():
        vq.decode(torch.zeros(images, SIDE, SIDE, dtype=torch.long, device="cuda"))
    return peak


def tune(rows: int, lora: int | None, layers: int) -> Peak:
    """A micro-batch of supervised fine-tuning under DeepSpeed, whose forward pass is all in bfloat16."""
    model = policy("sdpa", torch.bfloat16, checkpointing=True, lora=lora, layers=layers)
    ids = torch.zeros(rows, PROMPT_TOKENS + ANSWER, dtype=torch.long, device="cuda")
    with traced(model) as peak:
        weights = torch.ones(rows, ANSWER, device="cuda")
        weighted_sum(TargetLosses(model)(ids, ids[:, -ANSWER:]), ids[:, -ANSWER:], weights).backward()
    return peak


@dataclass(frozen=True)
class Case:
    """trace: runs it. counted: bytes that the estimate has for it."""

    trace: Callable[[], Peak]
    counted: Callable[[], float]


def training_case(presets: tuple[str, ...] = ("corrected",), layers: int = LAYERS, **changes: Any) -> Case:
    config = settings(**changes)
    moments = sizes(config, layers).micro_batch(config).moments().values()
    return Case(lambda: train(config, presets, layers), lambda: max(sum(parts.values()) for parts in moments))


def reference_case(**changes: Any) -> Case:
    config = settings(**changes)
    counted = larger(sizes(config).micro_batch(config, trained=False).forward())
    return Case(lambda: refer(config), lambda: sum(counted.values()))


def tuning_case(rows: int, lora: int | None = None, layers: int = LAYERS) -> Case:
    model = published(layers)
    micro_batch = Pass(
        ModelSizes(model),
        rows * (PROMPT_TOKENS + ANSWER),
        (Scored(rows * ANSWER, model.vocab_size),),
        checkpointing=True,
        lora_rank=lora,
    )
    moments = micro_batch.moments().values()
    return Case(lambda: tune(rows, lora, layers), lambda: max(sum(parts.values()) for parts in moments))


ADAPTERS: dict[str, Any] = {"lora": {"rank": 64}, "compute": {"reference": "adapter_off"}}
CASES = {
    "RL, 8 completions": training_case(("corrected", "grpo", "dr_grpo", "dapo")),
    "RL, 8 completions, `paper`": training_case(("paper",), objective={"preset": "paper"}),
    "RL, 4 completions that think": training_case(rollout={"think_tokens": 512}, compute={"micro_batch": 4}),
    "RL, 8 completions, LoRA": training_case(**ADAPTERS),
    "RL, 8 completions, LoRA without checkpointing, 8 layers": training_case(
        layers=FEW, lora={"rank": 64}, compute={"reference": "adapter_off", "gradient_checkpointing": False}
    ),
    "RL, 8 completions without checkpointing": training_case(compute={"gradient_checkpointing": False}),
    "RL, 8 completions without ZeRO, 8 layers": training_case(layers=FEW, compute={"zero": 0, "reference": "resident"}),
    "reference, 8 completions": reference_case(),
    "reference, 4 completions that think": reference_case(rollout={"think_tokens": 512}, compute={"micro_batch": 4}),
    "local sampling, 4 prompts": Case(lambda: sample(settings(), 4), lambda: sampling(sizes(settings()), settings())),
    "decoding, 8 images": Case(lambda: decode(8), lambda: decoding(sizes(settings()), settings())),
    "SFT, 4 rows": tuning_case(4),
    "SFT, 8 rows": tuning_case(8),
    "SFT, 4 rows, LoRA, 8 layers": tuning_case(4, lora=64, layers=FEW),
}


def main() -> None:
    wanted = [name for name in sys.argv[1:] if name != "--table"] or list(CASES)
    for name in wanted:
        case = CASES[name]
        with MODE:
            peak = case.trace()
        kernels = sorted(name.split(".")[1] for name in peak.operations if "attention" in name)
        row = {"name": name, "traced": peak.peak, "counted": case.counted(), "attention": kernels}
        print(json.dumps(row), flush=True)
        if "--table" in sys.argv:
            print(peak.table(16), flush=True)


if __name__ == "__main__":
    main()
    leave(0)
