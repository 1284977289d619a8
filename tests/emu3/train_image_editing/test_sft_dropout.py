"""Dropout of fine-tuning: at four places, and a function of where in a run it is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Emu3ForCausalLM

from emu3.mllm.language_model import load_language_model
from emu3.train_image_editing.objective import Dropout, TargetLosses

IDS = torch.arange(24).reshape(2, 12) % 7
RATE = 0.4


def new(model: Path, rate: float = RATE, seed: int = 3, rank: int = 0) -> tuple[Emu3ForCausalLM, Dropout]:
    loaded = load_language_model(model).double()
    return loaded.train(), Dropout(loaded, rate, seed, rank)


def states(model: Emu3ForCausalLM) -> Tensor:
    return model.model(input_ids=IDS, use_cache=False).last_hidden_state.detach()


def test_masks_are_a_function_of_seed_step_micro_batch_and_rank(model: Path) -> None:
    """Whatever torch's own random state is, as in a resumed run."""
    one, dropout = new(model)
    other, again = new(model)
    dropout.at(5, 1)
    again.at(5, 1)
    torch.manual_seed(0)
    first = states(one)
    torch.manual_seed(1)
    assert torch.equal(states(other), first)
    for step, micro_batch in ((6, 1), (5, 0)):
        dropout.at(step, micro_batch)
        assert not torch.equal(states(one), first)
    for seed, rank in ((4, 0), (3, 1)):
        different, elsewhere = new(model, seed=seed, rank=rank)
        elsewhere.at(5, 1)
        assert not torch.equal(states(different), first)


def test_random_numbers_elsewhere_go_on_as_if_nothing_was_drawn(model: Path) -> None:
    """The order of the rows is drawn from the same generator."""
    loaded, _ = new(model)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    states(loaded)
    assert torch.equal(torch.rand(3), expected)


def test_there_is_none_in_evaluation(model: Path) -> None:
    loaded, _ = new(model)
    plain = load_language_model(model).double().eval()
    assert torch.equal(states(loaded.eval()), states(plain))


@pytest.mark.parametrize("place", ["embeddings", "attention", "branches"])
def test_each_place_drops(model: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the others switched off; the share of zeros is that of the rate where zeros can be seen."""
    loaded, _ = new(model)
    layer = loaded.model.layers[0]
    seen: dict[str, Tensor] = {}
    plain = torch.nn.functional.dropout

    def watched(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        dropped = plain(values, p, training, inplace)
        seen.setdefault(f"{p}", dropped)
        return dropped

    if place != "attention":
        layer.self_attn.attention_dropout = 0.0
    if place != "branches":
        layer.dropout.p = 0.0
    if place != "embeddings":
        loaded.model.embed_tokens._forward_hooks.clear()
    loaded.set_attn_implementation("eager")
    monkeypatch.setattr(torch.nn.functional, "dropout", watched)
    states(loaded)
    dropped = seen[str(RATE)]
    assert dropped.ndim == {"embeddings": 3, "attention": 4, "branches": 3}[place]
    zeros = dropped if place != "attention" else dropped[..., torch.ones(12, 12).tril().bool()]
    assert (zeros == 0).double().mean().item() == pytest.approx(RATE, abs=0.1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_layer_that_is_run_again_draws_its_masks_again(model: Path, attention: str) -> None:
    """Gradient checkpointing restores torch's random state, but a run that is split over calls would not."""
    gradients = []
    for recomputed in (False, True):
        loaded, dropout = new(model)
        loaded.set_attn_implementation(attention)
        dropout.at(2, 0)
        losses = TargetLosses(loaded)
        if recomputed:
            losses.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"preserve_rng_state": False})
        torch.manual_seed(recomputed)
        losses(IDS, IDS).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in loaded.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-12, atol=1e-14)
