"""An optimizer step of RL with random weights, at full size or tiny; started by `emu3.launch`.

    python -m emu3.launch --ranks N rl.check_node.full_size TOLD.json [key=value ...]

The settings are those of the shipped configs, without a reference and a sampler. The first rank writes what was
measured as JSON.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from transformers import Emu3ForCausalLM, Emu3TextConfig

from emu3.errors import run_main
from emu3.files import write_json
from emu3.mllm.grammar import GridGrammar
from emu3.mllm.layout import TokenLayout
from emu3.tokenizer.config import StillVQConfig
from emu3.tokenizer.model import StillVQ
from emu3.training.lora import add_lora
from rl.check_node.machine import paper_config
from rl.check_node.page import Facts
from rl.config import Config
from rl.logprobs import pack
from rl.rollout.engine import Prompt, Rollout
from rl.shared_prefix import ATTENTION
from rl.training.trainer import Trainer, WholeTrainer

SIDE, PROMPT_TOKENS = 32, 1100
"""Of a grid at the paper's 65,536 pixels, and of a prompt that holds one."""
FULL = Emu3TextConfig(attention_dropout=0.0)
TINY = Emu3TextConfig(
    vocab_size=TokenLayout(300, 64).vocab_size, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=4096, pad_token_id=0, bos_token_id=1,
    eos_token_id=2, attention_dropout=0.0,
)  # fmt: skip
TINY_VISION = StillVQConfig(base_channels=32, channel_multiplier=(1,), attn_resolutions=(), codebook_size=64)


def step(config: Config, model_config: Emu3TextConfig, vision: StillVQConfig, side: int, prompt_tokens: int) -> Facts:
    """Two optimizer steps of RL on a micro-batch of random answers; the figures are those of the second.

    The policy is what `rl.training.trainer` makes of `config`, with random weights; there is no reference.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    device = accelerator.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    codec = StillVQ(vision).to(device)  # it is there while the policy is trained
    trainer = _trainer(config, model_config, accelerator)
    batch = pack(_rows(config, model_config, vision, side, prompt_tokens), config.objective.scheme, 0, device)
    told: Facts = {}
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
        told = {"pass_seconds": passed - start, "step_seconds": time.perf_counter() - passed, "grad_norm": norm}
    told |= {"ranks": accelerator.num_processes, "tokens": len(batch.ids_T), "finite": bool(np.isfinite(norm))}
    if device.type == "cuda":
        told |= {
            "peak_bytes": torch.cuda.max_memory_allocated(device),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(device),
        }
    del codec
    accelerator.end_training()
    return told


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
    if config.compute.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    if not config.compute.zero:
        return WholeTrainer(model, config, accelerator)
    from rl.training.zero import ZeroTrainer

    return ZeroTrainer(model, config, accelerator)


def _rows(
    config: Config, model_config: Emu3TextConfig, vision: StillVQConfig, side: int, prompt_tokens: int
) -> list[tuple[Prompt, Rollout]]:
    """One group of random answers."""
    codes = vision.codebook_size
    layout = TokenLayout(model_config.vocab_size - TokenLayout(0, codes).vocab_size, codes)
    rng = np.random.default_rng(0)
    grammar = GridGrammar(layout, side, side, size_ids=(1, 2, 3))
    source = np.zeros((side, side), np.uint16)
    prompt = Prompt("0", tuple(rng.integers(0, layout.text_ranks, prompt_tokens).tolist()), grammar, source, "", None)
    rows = []
    for _ in range(config.compute.micro_batch):
        grid = rng.integers(0, codes, (side, side))
        tokens = [layout.boi, *grammar.completion(grid.tolist())]
        rows.append((prompt, Rollout(tokens, np.zeros(len(tokens), np.float32), grid.astype(np.uint16), None)))
    return rows


def _finished(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description="An optimizer step of RL with random weights.")
    parser.add_argument("told", type=Path, help="JSON file that the first rank writes")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of rl/configs/earl.jsonnet")
    parser.add_argument("--tiny", action="store_true", help="of a tiny model, on whatever device there is")
    options = parser.parse_intermixed_args()
    config = paper_config(*options.overrides)
    if options.tiny:
        told = step(config, TINY, TINY_VISION, side=4, prompt_tokens=40)
    else:
        told = step(config, FULL, StillVQConfig(), SIDE, PROMPT_TOKENS)
    if int(os.environ["RANK"]) == 0:
        write_json(options.told, told)


if __name__ == "__main__":
    run_main(main)
