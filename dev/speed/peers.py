"""What users would take instead, TRL's GRPO and transformers' `generate` and `Trainer`, on the same work; part of
`scripts/speed.sh`.

A transformer of 4 layers of 256 channels and 8 heads, float32, on one thread of a CPU; groups of 8 completions of 242
tokens behind a prompt of 256. Seconds are those of the processor. Memory is what one pass adds to a fresh process.

What each side computes differs, which is the point: TRL reads the prompt once per completion and takes a softmax over
all ids of the vocabulary, here the prompt is read once and the softmax is over the ids that may stand at a place. TRL's
head scores every position where it has no Triton, as on this CPU, and those of completions alone where it has; the rows
"compact" make it do so here.
"""

from __future__ import annotations

import argparse
import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from time import process_time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import Emu3ForCausalLM, GenerationConfig, LogitsProcessor, Trainer, TrainingArguments

from dev.speed.measure import Speed, machine, peaks, record, seconds, table
from emu3.errors import run_main
from emu3.mllm.generate import Request, generate
from emu3.mllm.language_model import new_language_model
from emu3.mllm.layout import GridGrammar, TokenLayout
from emu3.train_image_editing.dataset import Collator, Example
from emu3.train_image_editing.trainer import EditTrainer
from rl.config_file import build_config
from rl.logprobs import pack, token_logprobs
from rl.rollout.engine import Prompt, Rollout
from rl.training.policy import adamw, trainer_of
from rl.update import PolicyUpdate

Work = Callable[[], object]
LAYOUTS = {"33,000": TokenLayout(text_ranks=21), "184,622": TokenLayout()}
PROMPT, GRID, GROUP = 256, (15, 15), 8
SFT_ROWS = 4
KL, LR, CLIP = 0.02, 1e-5, 1.0
FRESH = "import torch, transformers; transformers.Trainer"


def _model(ids: str) -> Emu3ForCausalLM:
    model = new_language_model(
        LAYOUTS[ids], hidden_size=256, layers=4, heads=8, kv_heads=8, ffn_size=1024, max_positions=1024, seed=0
    )
    model.set_attn_implementation("sdpa")
    return model


def _request(ids: str) -> Request:
    layout = LAYOUTS[ids]
    grammar = GridGrammar(layout, *GRID, size_ids=(1, 2, 3))
    source = grammar.completion(np.random.default_rng(0).integers(0, layout.codebook_size, GRID).tolist())
    prompt = [layout.bos, layout.boi, *source[:-1]]
    prompt += [index % 20 for index in range(PROMPT - len(prompt))]
    return Request(tuple(prompt), grammar, tuple((0, g) for g in range(GROUP)))


def _rows(ids: str) -> list[tuple[Prompt, Rollout]]:
    """A group with random completions."""
    request, rng = _request(ids), np.random.default_rng(1)
    prompt = Prompt("0", request.prompt, request.grammar, np.zeros(GRID, np.uint16), "", None)
    rows = []
    for _ in range(GROUP):
        codes = rng.integers(0, LAYOUTS[ids].codebook_size, GRID)
        tokens = [LAYOUTS[ids].boi, *request.grammar.completion(codes.tolist())]
        rows.append((prompt, Rollout(tokens, np.zeros(len(tokens), np.float32), codes.astype(np.uint16), None)))
    return rows


def _config() -> Any:
    paths = {"run_name": "speed", "output_dir": "runs", "model": "none", "vision": "none", "data": {"sets": ["none"]}}
    parts = {
        "objective": {"kl": KL},
        "optimizer": {"lr": LR, "max_grad_norm": CLIP},
        "compute": {"max_logprob_gap": 1e3},
    }
    return build_config({**paths, **parts, "judge": {"base_url": "http://localhost/v1"}})


def _trl(model: Emu3ForCausalLM, head: str, outputs: tuple[str, ...]) -> Any:
    """The part of a `GRPOTrainer` that its loss reads, around `model` with its head. head: "default" or "compact"."""
    from trl.trainer import utils
    from trl.trainer.grpo_trainer import GRPOTrainer

    utils._use_triton = lambda device: head == "compact"  # asked for the positions alone; the kernel has its own
    utils.add_fused_lm_head(model, outputs=outputs)
    trainer = SimpleNamespace(
        model=model,
        args=SimpleNamespace(use_bias_correction_kl=True, delta=None, steps_per_generation=1),
        accelerator=SimpleNamespace(
            is_main_process=False, num_processes=1, autocast=nullcontext, gather=lambda x: x, reduce=lambda x, **_: x
        ),
        _metrics=defaultdict(lambda: defaultdict(list)),
        loss_type="dapo",
        beta=KL,
        epsilon_low=0.2,
        epsilon_high=0.2,
        importance_sampling_level="token",
        use_vllm=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
    )
    trainer._get_per_token_logps_and_entropies = partial(GRPOTrainer._get_per_token_logps_and_entropies, trainer)
    trainer.loss = partial(GRPOTrainer._compute_loss, trainer, model)  # type: ignore[arg-type]  # its part
    return trainer


def _trl_ids(rows: list[tuple[Prompt, Rollout]]) -> tuple[Tensor, Tensor]:
    """Prompts and completions, (8, 256) and (8, 242)."""
    return torch.tensor([prompt.ids for prompt, _ in rows]), torch.tensor([rollout.tokens for _, rollout in rows])


def step_ways(ids: str, head: str) -> tuple[Work, Work]:
    """A whole optimizer step on a group: log-probabilities, loss with a KL term, gradients, clipping, AdamW."""
    rows, advantages = _rows(ids), torch.linspace(-1, 1, GROUP)

    def ours() -> None:
        if "ours" not in ready:
            config, accelerator, model = _config(), Accelerator(cpu=True), _model(ids)
            model.set_attn_implementation("shared_prefix")
            trainer = trainer_of(model, config, accelerator)
            update = PolicyUpdate(config, accelerator, trainer, None, len(rows[0][1].tokens))
            batch = pack(rows, "grammar", 0)
            references = [torch.full((int((batch.row_N == row).sum()),), -10.0) for row in range(GROUP)]
            ready["ours"] = partial(update, rows, references, advantages, LR, rows[0])
        ready["ours"]()

    def peer() -> None:
        if "peer" not in ready:
            model, (prompts, completions) = _model(ids).train(), _trl_ids(rows)
            trainer = _trl(model, head, ("log_probs", "entropy"))
            inputs = {
                "prompt_ids": prompts,
                "prompt_mask": torch.ones_like(prompts),
                "completion_ids": completions,
                "completion_mask": torch.ones_like(completions),
                "advantages": advantages,
                "ref_per_token_logps": torch.full(completions.shape, -10.0),
                "num_items_in_batch": torch.tensor(completions.numel()),
            }
            optimizer = adamw(model.parameters(), _config().optimizer)
            ready["peer"] = partial(_step, model, optimizer, partial(trainer.loss, inputs))
        ready["peer"]()

    ready: dict[str, Callable[[], object]] = {}
    return ours, peer


def _step(model: Emu3ForCausalLM, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    loss().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def reference(ids: str, head: str, turns: int) -> Speed:
    """The reference's log-probabilities of a group."""
    rows = _rows(ids)
    model, other = _model(ids), _model(ids)
    model.set_attn_implementation("shared_prefix")
    batch = pack(rows, "grammar", 0)
    trainer, (prompts, completions) = _trl(other, head, ("log_probs",)), _trl_ids(rows)
    both = torch.cat([prompts, completions], dim=1)
    mask, kept = torch.ones_like(both), completions.shape[1]

    def peer() -> object:
        return trainer._get_per_token_logps_and_entropies(other, both, mask, kept)

    times = seconds(lambda: token_logprobs(model, batch, 1.0), peer, turns, process_time)
    return Speed(f"grpo_reference_trl{_suffix(ids, head)}", *times, "s", None, f"TRL 1.16, {head} head, {ids} ids")


def _suffix(ids: str, head: str) -> str:
    return ("_184k" if ids == "184,622" else "") + ("_compact" if head == "compact" else "")


class _Grammar(LogitsProcessor):
    """What the grammar allows at each place, everything else masked."""

    def __init__(self, grammar: GridGrammar, start: int) -> None:
        self._grammar, self._start = grammar, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        low, high = self._grammar.legal(input_ids.shape[1] - self._start)
        masked = torch.full_like(scores, -torch.inf)
        masked[:, low:high] = scores[:, low:high]
        return masked


def sampling(turns: int) -> Speed:
    """A group under the grammar, from the distribution over all legal ids."""
    model, request, layout = _model("33,000").eval(), _request("33,000"), LAYOUTS["33,000"]
    prompt = torch.tensor([[*request.prompt, layout.boi]])
    settings = GenerationConfig(
        do_sample=True,
        top_k=0,
        num_return_sequences=GROUP,
        pad_token_id=layout.pad,
        eos_token_id=layout.eos,
        max_new_tokens=request.grammar.length,
    )
    processor = _Grammar(request.grammar, prompt.shape[1])

    def peer() -> object:
        return model.generate(prompt, generation_config=settings, logits_processor=[processor])

    times = seconds(lambda: generate(model, layout, [request]), peer, turns, process_time)
    return Speed("generate_hf", *times, "s", 1.9, "transformers' generate with a processor for the grammar, 33,000 ids")


def sft_ways(ids: str) -> tuple[Work, Work]:
    """A step of fine-tuning on 4 rows of prompt and target, the loss on the target: `EditTrainer`'s and `Trainer`'s own
    `training_step`, then clipping and AdamW."""
    rows = [(prompt.ids, rollout.tokens) for prompt, rollout in _rows(ids)[:SFT_ROWS]]
    folder = tempfile.mkdtemp()  # the Trainers make one, and leave it empty
    atexit.register(shutil.rmtree, folder)
    arguments = TrainingArguments(folder, use_cpu=True, per_device_train_batch_size=SFT_ROWS, report_to=[])

    def ours() -> None:
        if "ours" not in ready:
            examples = [
                Example(np.array([*prompt, *target], np.int32), len(prompt), np.zeros(len(prompt) + len(target), bool))
                for prompt, target in rows
            ]
            batch, model = Collator(LAYOUTS[ids].pad)(examples), _model(ids)
            trainer = EditTrainer(model=model, args=arguments, text_tokenizer=None)  # type: ignore[arg-type]
            loss = partial(trainer.training_step, trainer.model_wrapped, batch, batch["weights"].sum())
            ready["ours"] = partial(_trained, model, loss)
        ready["ours"]()

    def peer() -> None:
        if "peer" not in ready:
            tokens = torch.tensor([[*prompt, *target] for prompt, target in rows])
            labels = tokens.clone()
            labels[:, : len(rows[0][0])] = -100
            model = _model(ids)
            trainer = Trainer(model, arguments)
            count = (labels != -100).sum()
            batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}
            ready["peer"] = partial(_trained, model, partial(trainer.training_step, model, batch, count))
        ready["peer"]()

    def _trained(model: Emu3ForCausalLM, step: Callable[[], object]) -> None:
        optimizer = optimizers.setdefault(id(model), adamw(model.parameters(), _config().optimizer))
        step()  # gradients
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

    ready: dict[str, Callable[[], object]] = {}
    optimizers: dict[int, torch.optim.Optimizer] = {}
    return ours, peer


def help_seconds(turns: int) -> Speed:
    """`--help` of fine-tuning, against the import that a command has behind it that reads its options last."""

    def command(*arguments: str) -> Callable[[], object]:
        return partial(subprocess.run, [sys.executable, *arguments], check=True, capture_output=True)

    def clock() -> float:
        times = os.times()
        return times.children_user + times.children_system

    ours, peer = command("-m", "shapes.command_line", "sft", "--help"), command("-c", FRESH)
    return Speed("help_seconds", *seconds(ours, peer, turns, clock), "s", 8.0, "import torch, transformers.Trainer")


def measurements(turns: int) -> Iterator[Speed]:
    """One after the other: some take minutes. TRL's default head at 184,622 ids, another two minutes a step, is left
    out."""
    for ids, head, goal in (("33,000", "default", 2.0), ("33,000", "compact", 1.3), ("184,622", "compact", 4.5)):
        name, peer_is = _suffix(ids, head), f"TRL 1.16, {head} head, {ids} ids"
        yield Speed(f"grpo_step_trl{name}", *seconds(*step_ways(ids, head), turns, process_time), "s", goal, peer_is)
    peer_is = "TRL 1.16, default head, 33,000 ids"
    yield Speed("grpo_memory_trl", *peaks(step_ways, "33,000", "default"), "MB", 3.5, peer_is)
    yield sampling(turns)
    peer_is, times = f"transformers' Trainer, {SFT_ROWS} rows", seconds(*sft_ways("33,000"), turns, process_time)
    yield Speed("sft_step_trainer", *times, "s", 1.6, f"{peer_is}, 33,000 ids")
    yield Speed("sft_memory_trainer", *peaks(sft_ways, "184,622"), "MB", 4.0, f"{peer_is}, 184,622 ids")
    yield help_seconds(turns)
    for ids, head in (("33,000", "default"), ("33,000", "compact"), ("184,622", "compact")):
        yield reference(ids, head, turns)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dev.speed.peers", description="Measure against what users take.")
    parser.add_argument("--output", type=Path, default=Path("speed.json"), help="list to add to (default: speed.json)")
    parser.add_argument("--turns", type=int, default=3, help="turns of each (default: 3)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for result in measurements(options.turns):
        record([result], options.output, machine())
        print(table([result]), flush=True)


if __name__ == "__main__":
    run_main(main)
