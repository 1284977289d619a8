"""A packed row in which each prompt stands once, against each sequence on its own behind its own copy of the prompt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Emu3ForCausalLM
from transformers.models.emu3.modeling_emu3 import Emu3RMSNorm

from emu3.mllm.language_model import new_language_model
from emu3.mllm.layout import TokenLayout
from rl import shared_prefix
from rl.shared_prefix import ATTENTION, SharedPrefix, attend, final_states

LAYOUT = TokenLayout(text_ranks=20, codebook_size=8)
CPU = torch.device("cpu")
MIXES = {
    "one group": SharedPrefix((6,), ((4, 4, 4),), CPU),
    "equal groups": SharedPrefix((5, 5), ((3, 3), (3, 3)), CPU),
    "all lengths": SharedPrefix((2, 2, 7, 9), ((1, 5), (3, 3), (4,), (2, 2, 6)), CPU),
}


def new_model(heads: int = 4, key_heads: int = 2) -> Emu3ForCausalLM:
    model = new_language_model(
        LAYOUT, hidden_size=32, layers=2, heads=heads, kv_heads=key_heads, ffn_size=48, max_positions=32, seed=0
    )
    model.set_attn_implementation(ATTENTION)
    return model


@pytest.fixture
def float64_norms(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """transformers computes the RMS norm in float32 whatever the model, which would hide all below 1e-7."""

    def forward(self: Emu3RMSNorm, states: Tensor) -> Tensor:
        return self.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    with monkeypatch.context() as patch:
        patch.setattr(Emu3RMSNorm, "forward", forward)
        yield


def tokens(shared: SharedPrefix) -> Tensor:
    return torch.randint(20, (sum(shared.lengths),), generator=torch.Generator().manual_seed(1))


def one_by_one(model: Emu3ForCausalLM, ids_T: Tensor, shared: SharedPrefix) -> tuple[Tensor, Tensor]:
    """Final states of all branches, each behind its own copy of the prefix, and of the prefixes alone."""
    prefixes, branches = ids_T.split([sum(shared.prefixes), sum(map(sum, shared.branches))])
    of_prefixes, of_branches = [], []
    owners = [owner for owner, lengths in enumerate(shared.branches) for _ in lengths]
    lengths = [length for lengths in shared.branches for length in lengths]
    for owner, branch in zip(owners, branches.split(lengths), strict=True):
        prefix = prefixes.split(shared.prefixes)[owner]
        states = model.model(input_ids=torch.cat([prefix, branch])[None], use_cache=False).last_hidden_state[0]
        of_branches.append(states[len(prefix) :])
    for prefix in prefixes.split(shared.prefixes):
        of_prefixes.append(model.model(input_ids=prefix[None], use_cache=False).last_hidden_state[0])
    return torch.cat(of_prefixes), torch.cat(of_branches)


@pytest.mark.parametrize("attention", [ATTENTION, "sdpa"])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("mix", MIXES)
def test_equal_to_one_by_one(mix: str, key_heads: int, attention: str, float64_norms: None) -> None:
    """Values and every gradient, to 1e-10 in float64. Guards positions, who sees whom, the merge of the two softmaxes
    and what flows back from all branches into the keys and values of the prefix."""
    shared, model = MIXES[mix], new_model(4, key_heads).double()
    ids_T = tokens(shared)
    expected = torch.cat(one_by_one(model, ids_T, shared))
    model.set_attn_implementation(attention)
    states = final_states(model, ids_T, shared)
    torch.testing.assert_close(states, expected, rtol=1e-10, atol=1e-10)
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    parameters = list(model.model.parameters())
    gradients, expected_gradients = (torch.autograd.grad(x, parameters, weights) for x in (states, expected))
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-10, atol=1e-10)


def test_without_a_kernel(monkeypatch: pytest.MonkeyPatch, float64_norms: None) -> None:
    """float32 and float64 on CUDA have none and go with a mask."""
    shared, model = MIXES["all lengths"], new_model().double()
    expected = final_states(model, tokens(shared), shared)
    monkeypatch.setattr(shared_prefix, "flash_available", lambda query: False)
    monkeypatch.setattr(shared_prefix, "flash_forward", None)
    torch.testing.assert_close(final_states(model, tokens(shared), shared), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("attention", [ATTENTION, "sdpa"])
def test_gradient_checkpointing_changes_nothing(attention: str) -> None:
    """A layer that is run again in the backward pass must see the same structure: the same operations, so equal to
    the last bit."""
    shared, model = MIXES["all lengths"], new_model()
    model.set_attn_implementation(attention)
    parameters = list(model.model.parameters())

    def gradients() -> tuple[Tensor, ...]:
        states = final_states(model, tokens(shared), shared)
        return torch.autograd.grad(states.pow(3).sum(), parameters)

    expected = gradients()
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    runs: list[None] = []
    model.model.layers[0].register_forward_pre_hook(lambda *_: runs.append(None))
    recomputed = gradients()
    assert len(runs) == 2, "the layer was not run again: this tested nothing"
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(recomputed, expected, strict=True))


def test_merge_of_bf16() -> None:
    """Two rounded results must be merged in float32: the error is 1.16 of that of one softmax over all keys, and 1.6
    if the merge is rounded as well."""
    shared = SharedPrefix((100,), ((60,) * 8,), CPU)
    generator = torch.Generator().manual_seed(0)
    shape = (sum(shared.lengths), 32)
    query, key, value = (torch.randn(1, h, *shape, generator=generator).bfloat16() for h in (4, 2, 2))
    ours, _ = attend(torch.nn.Module(), query, key, value, None, shared=shared)
    plain, exact = (
        F.scaled_dot_product_attention(*x, shared.seen_T_T, enable_gqa=True).transpose(1, 2)
        for x in ((query, key, value), (query.double(), key.double(), value.double()))
    )
    assert (ours - exact).norm() < 1.35 * (plain - exact).norm()


def test_autocast() -> None:
    """Guards attention that runs in float32 under autocast, or in two types; gradients are float32 and those of the
    plain pass under the same autocast up to the rounding that it has itself."""
    shared, model = MIXES["all lengths"], new_model()
    ids_T = tokens(shared)
    parameters = list(model.model.parameters())

    def run(packed: bool) -> Tensor:
        states = final_states(model, ids_T, shared) if packed else torch.cat(one_by_one(model, ids_T, shared))
        gradients = torch.autograd.grad(states.float().pow(3).sum(), parameters)
        return torch.cat([states.float().flatten(), *(gradient.flatten() for gradient in gradients)])

    truth = run(packed=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = ((run(packed) - truth).norm() for packed in (True, False))
    assert 0 < ours < 1.5 * plain


def test_other_calls_are_those_of_sdpa() -> None:
    """The sampler and whoever else calls the model without a structure: with padding, and with a mask of its own."""
    model = new_model()
    ids = tokens(MIXES["one group"]).view(2, 9)
    padding = torch.ones_like(ids)
    padding[1, :3] = 0
    own = torch.zeros(2, 1, 9, 9).masked_fill_(~torch.ones(9, 9, dtype=torch.bool).tril(), -1e9)
    for mask in (None, padding, own):
        results = []
        for attention in (ATTENTION, "sdpa"):
            model.set_attn_implementation(attention)
            results.append(model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state)
        assert torch.equal(*results)


def test_dropout_is_refused() -> None:
    """The kernels of the two parts would drop independently of each other; better no training than a wrong one."""
    model = new_model().train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(ValueError, match="without dropout"):
        final_states(model, tokens(MIXES["one group"]), MIXES["one group"])
