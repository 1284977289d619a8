"""What several processes do together for two of the checks; started by `emu3.launch`.

    python -m emu3.launch --ranks N rl.check_node.on_ranks sum FACTS.json --megabytes 256
    python -m emu3.launch --ranks N rl.check_node.on_ranks step FACTS.json [key=value ...]

`sum` times a sum over all ranks. `step` is an optimizer step of RL with random weights, at full size or tiny, with the
settings of the shipped configs, without a reference and a sampler. The first rank writes what was measured as JSON.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from transformers import Emu3ForCausalLM, Emu3TextConfig

from emu3.errors import run_main
from emu3.files import write_json
from emu3.mllm.layout import TokenLayout
from emu3.settings import COUNT
from emu3.tokenizer.blocks import StillVQConfig
from emu3.tokenizer.model import StillVQ
from emu3.training.state import add_lora
from rl.check_node.arithmetic import random_group
from rl.check_node.check import Facts
from rl.check_node.machine import paper_config
from rl.config import Config
from rl.logprobs import pack
from rl.shared_prefix import ATTENTION
from rl.training.policy import Trainer, trainer_of

SIDE, PROMPT_TOKENS = 32, 1100
"""Of a grid at the paper's 65,536 pixels, and of a prompt that holds one."""
SUM_SECONDS, TURNS = timedelta(seconds=120), 5
FULL = Emu3TextConfig(attention_dropout=0.0)
TINY = Emu3TextConfig(
    vocab_size=TokenLayout(300, 64).vocab_size, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=4096, pad_token_id=0, bos_token_id=1,
    eos_token_id=2, attention_dropout=0.0,
)  # fmt: skip
TINY_VISION = StillVQConfig(base_channels=32, channel_multiplier=(1,), attn_resolutions=(), codebook_size=64)


def step(config: Config, model_config: Emu3TextConfig, vision: StillVQConfig, side: int, prompt_tokens: int) -> Facts:
    """Two optimizer steps of RL on a micro-batch of random completions; the numbers are those of the second.

    The policy is what `rl.training.policy` makes of `config`, with random weights; there is no reference.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    device = accelerator.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    codec = StillVQ(vision).to(device)  # it is there while the policy is trained
    trainer = _trainer(config, model_config, accelerator)
    codes = vision.codebook_size
    layout = TokenLayout(model_config.vocab_size - TokenLayout(0, codes).vocab_size, codes)
    rows = random_group(np.random.default_rng(0), layout, side, side, prompt_tokens, config.compute.micro_batch)
    batch = pack(rows, config.objective.scheme, 0, device)
    facts: Facts = {}
    for _ in range(2):
        gc.collect()
        _finished(device)
        start = time.perf_counter()
        logprobs_N, _ = trainer.score(batch)
        trainer.backward(-logprobs_N.mean(), last=True)
        _finished(device)
        passed = time.perf_counter()
        norm = trainer.step(1e-6)
        _finished(device)
        facts = {"pass_seconds": passed - start, "step_seconds": time.perf_counter() - passed, "grad_norm": norm}
    facts |= {"ranks": accelerator.num_processes, "tokens": len(batch.ids_T), "finite": bool(np.isfinite(norm))}
    if device.type == "cuda":
        facts |= {
            "peak_bytes": torch.cuda.max_memory_allocated(device),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(device),
        }
    del codec
    accelerator.end_training()
    return facts


def _trainer(config: Config, model_config: Emu3TextConfig, accelerator: Accelerator) -> Trainer:
    torch.manual_seed(0)  # the same weights on every rank
    dtype = torch.get_default_dtype()
    if config.compute.zero and config.compute.precision == "bf16":
        torch.set_default_dtype(torch.bfloat16)
    try:
        with accelerator.device:
            model = Emu3ForCausalLM(model_config)
    finally:
        torch.set_default_dtype(dtype)
    model.set_attn_implementation(ATTENTION)
    if config.lora:
        add_lora(model, config.lora.rank, config.lora.alpha, config.seed)
    return trainer_of(model, config, accelerator)


def all_reduce(megabytes: int) -> Facts:
    """Sum `megabytes` MB of float32 over all ranks. Raises ArithmeticError if the sum is wrong."""
    cuda = torch.cuda.is_available()
    rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(backend, timeout=SUM_SECONDS)
    numbers = torch.full((megabytes * 10**6 // 4,), float(dist.get_rank() + 1), device=device)
    dist.all_reduce(numbers)
    ranks = dist.get_world_size()
    if not (numbers == ranks * (ranks + 1) / 2).all():
        raise ArithmeticError(f"{backend} summed {ranks} ranks to {numbers.min().item()} ... {numbers.max().item()}")
    _finished(device)
    start = time.perf_counter()
    for _ in range(TURNS):
        dist.all_reduce(numbers.fill_(1.0))
    _finished(device)
    seconds = (time.perf_counter() - start) / TURNS
    dist.destroy_process_group()
    version = ".".join(map(str, torch.cuda.nccl.version())) if cuda else None
    return {"ranks": ranks, "backend": backend, "nccl": version, "gb_per_s": megabytes / 1e3 / seconds}


def _finished(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A sum over all ranks, or an optimizer step of RL with random weights."
    )
    parser.add_argument("what", choices=("sum", "step"))
    parser.add_argument("facts", type=Path, help="JSON file that the first rank writes")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of rl/configs/earl.jsonnet, for a step")
    parser.add_argument("--megabytes", type=COUNT, default=16, help="of float32, MB on each rank; default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="a step of a tiny model, on whatever device there is")
    options = parser.parse_intermixed_args()
    if options.what == "sum":
        facts = all_reduce(options.megabytes)
    elif options.tiny:
        facts = step(paper_config(*options.overrides), TINY, TINY_VISION, side=4, prompt_tokens=40)
    else:
        facts = step(paper_config(*options.overrides), FULL, StillVQConfig(), SIDE, PROMPT_TOKENS)
    if int(os.environ["RANK"]) == 0:
        write_json(options.facts, facts)


if __name__ == "__main__":
    run_main(main)
