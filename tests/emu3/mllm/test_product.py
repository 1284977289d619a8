"""Fast products of linear layers on a CPU: the same numbers as torch's own within what each may round, and nothing else
touched."""

from __future__ import annotations

import copy
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from transformers import Emu3ForCausalLM

from emu3.errors import UserError
from emu3.mllm import product as products
from emu3.mllm.language_model import new_language_model
from emu3.mllm.layout import TokenLayout
from emu3.mllm.product import check_product, say_faster, use_product
from emu3.settings import Product
from emu3.training.state import add_lora

CPU = torch.device("cpu")
LAYOUT = TokenLayout(text_ranks=40, codebook_size=64)


@pytest.fixture(params=["onednn", "bf16"])
def fast(request: pytest.FixtureRequest) -> Product:
    try:
        check_product("", request.param, CPU)
    except UserError as error:
        pytest.skip(str(error))
    return request.param


def model() -> Emu3ForCausalLM:
    return new_language_model(
        LAYOUT,
        hidden_size=64,
        layers=2,
        heads=2,
        kv_heads=2,
        ffn_size=192,
        max_positions=64,
        attention_bias=True,
        seed=0,
    )


def loss_and_gradients(language_model: Emu3ForCausalLM) -> tuple[Tensor, dict[str, Tensor]]:
    ids = torch.randint(0, LAYOUT.vocab_size, (4, 40), generator=torch.Generator().manual_seed(0))
    loss = language_model(ids, labels=ids).loss
    loss.backward()
    gradients = {n: p.grad for n, p in language_model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def test_loss_and_gradients_are_those_of_the_plain_product(fast: Product) -> None:
    """A transposed factor, a bias that is forgotten, a gradient of another layer. `onednn` sums at most 192 products of
    float32 in another order: 2^-24 for each, growing as the root of their number, stays below 1e-5. `bf16` rounds each
    factor by 2^-9 at most; the errors of a sum are independent, so a gradient behind seven layers is within 2^-5."""
    plain, other = model(), model()
    use_product(other, fast)
    (loss, expected), (found_loss, found) = loss_and_gradients(plain), loss_and_gradients(other)
    bound = {"onednn": 1e-5, "bf16": 2**-5}[fast]
    assert float(found_loss) == pytest.approx(float(loss), rel=bound / 10)
    assert found.keys() == expected.keys()
    errors = {name: float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected}
    assert max(errors.values()) < bound
    if fast == "bf16":
        assert max(errors.values()) > 2**-12, "nothing was rounded"


def test_only_the_inner_linear_layers_multiply_otherwise(fast: Product) -> None:
    """Head, embeddings and norms, and whatever else this process multiplies, in the passes as behind them."""
    other = model()
    use_product(other, fast)
    changed = {name for name, layer in other.named_modules() if type(layer) in products._LAYERS.values()}
    inner = {name for name, layer in other.named_modules() if isinstance(layer, nn.Linear)} - {"lm_head"}
    assert changed == inner and len(inner) == 2 * 7
    loss_and_gradients(other)
    assert torch.get_float32_matmul_precision() == "highest"
    left, right = torch.randn(50, 60), torch.randn(60, 70)
    torch.testing.assert_close(left @ right, (left.double() @ right.double()).float(), rtol=1e-5, atol=1e-5)


def test_a_copy_has_weights_of_its_own(fast: Product) -> None:
    """A layer that is changed by a bound method computes with the weights of the layer that it was copied from."""
    other = model()
    use_product(other, fast)
    copied = copy.deepcopy(other)
    with torch.no_grad():
        for parameter in copied.model.layers.parameters():
            parameter.zero_()
    assert loss_and_gradients(copied)[0] != loss_and_gradients(other)[0]
    assert other.state_dict().keys() == model().state_dict().keys()


def test_frozen_weights_get_no_gradient_and_adapters_do(fast: Product) -> None:
    other = model()
    use_product(other, fast)
    add_lora(other, 4, 8.0, seed=0)
    gradients = loss_and_gradients(other)[1]
    assert gradients and all("lora_" in name for name in gradients)


def test_what_cannot_be_done_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--product bf16 is for CPUs, and this run is on cuda"):
        check_product("--product ", "bf16", torch.device("cuda"))
    check_product("--product ", "plain", torch.device("cuda"))
    monkeypatch.setattr(products, "can_multiply", lambda one: one == "plain")
    with pytest.raises(UserError, match="product=bf16: this processor has no such product"):
        check_product("compute.product=", "bf16", CPU)


@pytest.mark.parametrize(
    ("chosen", "seconds", "said"),
    [
        ("plain", (3.0, 2.9, 1.0), "3.0 times as fast on this processor with --product bf16"),
        ("plain", (3.0, 1.5, 1.6), "2.0 times as fast on this processor with --product onednn"),
        ("plain", (3.0, 2.9, 2.8), None),
        ("bf16", (3.0, 2.9, 1.0), None),
    ],
)
def test_what_is_faster_is_said_in_one_line(
    chosen: Product,
    seconds: tuple[float, ...],
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = dict(zip(get_args(Product), seconds, strict=True))
    monkeypatch.setattr(products, "can_multiply", lambda _: True)
    monkeypatch.setattr(products, "_seconds", lambda one, *_: times[one])
    say_faster("--product ", chosen, CPU)
    out = capsys.readouterr().out
    assert out.count("\n") == (said is not None) and (said or "") in out


def test_the_timing_runs_and_draws_no_random_number(fast: Product) -> None:
    """A start with a line to say is the same run as one without."""
    state = torch.get_rng_state()
    assert products._seconds(fast, torch.ones(8, 4), torch.ones(6, 4), torch.ones(8, 6)) > 0
    say_faster("", "plain", CPU)
    assert torch.equal(torch.get_rng_state(), state)
