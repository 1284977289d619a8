"""Prints what sharded trainers do with buffers, weights and broken gradients: `sharded_facts.py CONFIG.json ...`.

In a process of its own: DeepSpeed changes torch's functions and the environment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from emu3.mllm.text_tokenizer import TextTokenizer
from rl.config import Config
from rl.config_file import build_config
from rl.logprobs import Batch, pack
from rl.rollout.engine import Rollout
from rl.rollout.vllm import probe_prompt
from rl.training.policy import load_model, make_trainer
from rl.training.zero import ZeroTrainer


def batch_of(config: Config) -> Batch:
    prompt = probe_prompt(TextTokenizer.from_pretrained(config.model).layout)
    tokens = [prompt.grammar.layout.boi, *prompt.grammar.completion(prompt.source.tolist())]
    return pack([(prompt, Rollout(tokens, np.zeros(len(tokens), np.float32), prompt.source, None))], "grammar", 0)


def facts(config: Config) -> dict[str, Any]:
    trainer, _ = make_trainer(config, Accelerator(cpu=True))
    assert isinstance(trainer, ZeroTrainer)
    exact = dict(load_model(config.model, config).named_buffers())
    buffers = [
        *trainer.model.named_buffers(),
        *((name.removeprefix("model."), buffer) for name, buffer in trainer._engine.module.named_buffers()),
    ]
    rotary = all(buffer.dtype == torch.float32 and torch.equal(buffer, exact[name]) for name, buffer in buffers)
    weights = sorted({str(weight.dtype) for weight in trainer.model.parameters()})
    with trainer.weights() as model:
        before = model.model.norm.weight.detach().clone()
    logprobs_N, _ = trainer.score(batch_of(config))
    trainer.backward((logprobs_N * torch.nan).sum(), last=True)
    norm = trainer.step(1.0)
    with trainer.weights() as model:
        kept = torch.equal(model.model.norm.weight, before)
    return {"buffers": len(buffers), "rotary": rotary, "weights": weights, "norm": str(norm), "kept": kept}


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[1:]]
    print(json.dumps([facts(build_config(json.loads(path.read_text(encoding="utf-8")))) for path in paths]))
