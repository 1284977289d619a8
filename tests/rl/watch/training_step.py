"""Training steps of a small model, and the memory that they take at their peak; run as a process of its own.

    MALLOC_MMAP_THRESHOLD_=65536 python training_step.py

That setting gives each tensor pages of its own, so that the system's number is the sum of those that are alive.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from accelerate import Accelerator
from sizes_of_emu3 import settings
from transformers import Emu3ForCausalLM

from dev.speed.measure import added_memory
from emu3.mllm.language_model import new_language_model
from emu3.mllm.layout import GridGrammar, TokenLayout
from rl.config import Config
from rl.logprobs import pack
from rl.rollout.engine import Prompt, Rollout
from rl.shared_prefix import ATTENTION
from rl.training.policy import WholeTrainer

LAYOUT = TokenLayout(text_ranks=300, codebook_size=64)
GRAMMAR = GridGrammar(LAYOUT, 8, 8, (1, 2, 3))
PROMPT_TOKENS, COMPLETION_TOKENS, GROUP = 200, 1 + GRAMMAR.length, 8
CONFIGS = [
    settings(
        objective={"kl": 0.0},
        compute={"precision": "fp32", "zero": 0, "gradient_checkpointing": checkpointing, "reference": "resident"},
    )
    for checkpointing in (False, True)
]


def small_model(hidden_size: int = 512, layers: int = 6) -> Emu3ForCausalLM:
    """By default 19 million weights."""
    return new_language_model(
        LAYOUT, hidden_size=hidden_size, layers=layers, heads=8, kv_heads=8, ffn_size=1408, max_positions=512, seed=0
    )


def train(config: Config, model: Emu3ForCausalLM) -> None:
    """A step, after which there is an optimizer's state, and a step of two micro-batches."""
    model.set_attn_implementation(ATTENTION)
    if config.compute.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    codes = np.zeros((8, 8), np.uint16)
    completion = [LAYOUT.boi, *GRAMMAR.completion(codes.tolist())]
    rollout = Rollout(completion, np.zeros(len(completion), np.float32), codes, None)
    prompt = Prompt("", tuple(range(PROMPT_TOKENS)), GRAMMAR, codes, "", None)
    trainer = WholeTrainer(model, config, Accelerator(cpu=True))
    for last in (True, False, True):
        logprobs, _ = trainer.score(pack([(prompt, rollout)] * GROUP, "grammar", 0))
        trainer.backward(logprobs.sum(), last=last)
        if last:
            trainer.step(1e-4)


def main() -> None:
    """Print the bytes that each of `CONFIGS` adds to the process at its peak."""
    for config in CONFIGS:
        train(config, small_model(hidden_size=64, layers=1))  # what is loaded at the first use
        print(added_memory(partial(lambda config: train(config, small_model()), config)) * 2**20)


if __name__ == "__main__":
    main()
