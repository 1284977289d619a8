"""The vLLM engine beside a trainer: what it reports is what the trainer computes, and old weights are found out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_run import without_times

pytest.importorskip("vllm")

from emu3.errors import UserError
from emu3.mllm.language_model import load_language_model, new_language_model, save_checkpoint
from emu3.mllm.sequence import THINK_PREFILL, edit_prompt, grid_grammar
from emu3.mllm.text_tokenizer import TextTokenizer, train_ranks
from emu3.training.state import add_lora
from rl.config import Config
from rl.logprobs import pack
from rl.rollout.engine import LocalEngine, Prompt, make_engine
from rl.rollout.vllm import MOST, VllmEngine
from rl.training.policy import WholeTrainer

CPU = torch.device("cpu")
CODES = 16  # those of the tiny world's image tokenizer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 32 numbers, the smallest that vLLM runs on a CPU."""
    folder = tmp_path_factory.mktemp("vllm")
    train_ranks(["make it red"], 260, folder / "ranks")
    tokenizer = TextTokenizer.from_rank_file(folder / "ranks", CODES)
    model = new_language_model(
        tokenizer.layout,
        hidden_size=64,
        layers=2,
        heads=2,
        kv_heads=1,
        ffn_size=96,
        max_positions=160,
        rope_theta=100.0,
        attention_bias=True,
        tie_embeddings=True,
        initializer_range=0.2,
        seed=0,
    )
    save_checkpoint(model, tokenizer, folder / "model")
    return folder / "model"


@pytest.fixture
def make(make_config: Any, model_folder: Path) -> Any:
    """Builds the config, trainer, tokenizer and engine of a policy; keyword arguments are sections of the config."""

    def build(**changes: Any) -> tuple[WholeTrainer, TextTokenizer, Any]:
        rollout = {"engine": "vllm", "temperature": 0.8, "vllm": {"max_sequences": 8}, **changes.pop("rollout", {})}
        config: Config = make_config(model=str(model_folder), rollout=rollout, **changes)
        model = load_language_model(model_folder)
        if config.lora is not None:
            add_lora(model, config.lora.rank, config.lora.alpha, seed=0)
        trainer = WholeTrainer(model, config, Accelerator(cpu=True))
        tokenizer = TextTokenizer.from_pretrained(model_folder)
        return trainer, tokenizer, make_engine(config, trainer, tokenizer, CPU)

    return build


def prompts(tokenizer: TextTokenizer, think: bool) -> list[Prompt]:
    """Two grids of different sizes."""
    found = []
    for index, (height, width) in enumerate(((2, 3), (4, 2))):
        source = np.random.default_rng(index).integers(0, CODES, (height, width)).astype(np.uint16)
        ids = edit_prompt(tokenizer, source, "make it red") + (tokenizer.encode(THINK_PREFILL) if think else [])
        grammar = grid_grammar(tokenizer, height, width)
        found.append(Prompt(str(index), tuple(ids), grammar, source, "make it red", None))
    return found


def seeds(count: int) -> list[list[tuple[int, ...]]]:
    return [[(0, index, sample) for sample in range(4)] for index in range(count)]


def shift(trainer: WholeTrainer) -> None:
    """What an optimizer step does, more of it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def trainers_logprobs(trainer: WholeTrainer, rows: list[Any], think_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    batch = pack(rows, "grammar", think_tokens, CPU)
    with torch.no_grad():
        return batch.sampled_N, trainer.score(batch)[0]


@pytest.mark.parametrize("think_tokens", [0, 5])
def test_reports_the_trainers_logprobs(make: Any, think_tokens: int) -> None:
    """Before and after an update, every scored token; float32 sums in another order move them by some 1e-5."""
    trainer, tokenizer, engine = make(rollout={"think_tokens": think_tokens})
    mine = prompts(tokenizer, think_tokens > 0)
    for update in range(2):
        if update:
            engine.sleep()
            shift(trainer)
            engine.sync()
        assert engine.probe_gap < 1e-4
        rows = []
        for prompt, group in zip(mine, engine.sample(mine, seeds(2)), strict=True):
            assert len(group) == 4
            for rollout in group:
                boi = rollout.tokens.index(tokenizer.layout.boi)
                assert prompt.grammar.codes(rollout.tokens[boi + 1 :]) == rollout.codes.tolist()
                thought = tokenizer.decode(rollout.tokens[:boi])
                assert rollout.reasoning == (thought if think_tokens else None)
                rows.append((prompt, rollout))
        sampled, scored = trainers_logprobs(trainer, rows, think_tokens)
        torch.testing.assert_close(sampled, scored, rtol=0, atol=1e-4)


def test_old_weights_are_found_out(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync that changes nothing must not pass for one, however it came about."""
    trainer, _, engine = make()
    assert isinstance(engine, VllmEngine)
    shift(trainer)
    with monkeypatch.context() as broken:
        broken.setattr(engine._sampler, "load", lambda weights: None)
        with pytest.raises(UserError, match=r"max_probe_gap=0\.005.*same weights"):
            engine.sync()
    assert engine.probe_gap > 0.2
    engine.sync()
    assert engine.probe_gap < 1e-4


@pytest.mark.parametrize(("precision", "drift"), [("fp32", 0.003), ("bf16", 0.1)])
def test_the_bound_is_the_precisions(make: Any, precision: str, drift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards both of its sides: rounding in that precision passes, and a drift that 0.2 nats let pass does not."""
    trainer, _, engine = make(compute={"precision": precision})
    assert engine.probe_gap < MOST[precision] / 2
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += drift * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
            )
    with monkeypatch.context() as broken:
        broken.setattr(engine._sampler, "load", lambda weights: None)
        with pytest.raises(UserError, match=f"max_probe_gap={MOST[precision]}"):
            engine.sync()
    assert MOST[precision] < engine.probe_gap
    engine.sync()


def test_adapters_sample(make: Any) -> None:
    """Guards LoRA: the engine gets the merged weights, the trainer scores with adapters."""
    pytest.importorskip("peft")
    trainer, _, engine = make(lora={"rank": 4, "alpha": 8.0})
    shift(trainer)
    engine.sync()
    assert engine.probe_gap < 1e-4


def test_local_is_chosen_by_default(make_config: Any, model_folder: Path) -> None:
    config = make_config(model=str(model_folder))
    trainer = WholeTrainer(load_language_model(model_folder), config, Accelerator(cpu=True))
    engine = make_engine(config, trainer, TextTokenizer.from_pretrained(model_folder), CPU)
    assert isinstance(engine, LocalEngine) and engine.probe_gap is None


def test_a_run_trains_and_resumes(make_config: Any, run: Any, model_folder: Path) -> None:
    """Guards the wiring: each step samples from the weights of the step before, whichever process made them."""
    config = make_config(
        model=str(model_folder),
        steps=4,
        save_every=2,
        rollout={"engine": "vllm", "vllm": {"max_sequences": 8}},
        optimizer={"lr": 1e-2},
    )
    whole = run(dataclasses.replace(config, run_name="whole"))
    run(dataclasses.replace(config, run_name="parts", steps=2))
    resumed = run(dataclasses.replace(config, run_name="parts"))
    assert len(whole) == 4
    assert all(line["logprob_gap"] < 1e-4 for line in whole)
    assert without_times(resumed) == without_times(whole)
