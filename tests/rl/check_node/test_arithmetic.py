"""The check of the fast paths finds a kernel that computes something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emu3.errors import UserError
from emu3.mllm import head
from emu3.tokenizer.model import StillVQ
from rl import shared_prefix
from rl.check_node.arithmetic import fast_paths
from rl.check_node.check import Node

NODE = Node(0, Path("runs"), None)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_paths_of_this_device(precision: str) -> None:
    line, facts = fast_paths(NODE, precision)
    assert line.startswith("on cpu, relative distance from")
    assert facts["flash"]
    for name in ("attention", "head", "tokenizer"):
        assert 0 < facts[name] < (1e-5 if precision == "fp32" else 0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_attention_kernel_that_is_off(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    monkeypatch.setattr(shared_prefix, "flash_backward", broken_backward(shared_prefix.flash_backward))
    with pytest.raises(UserError, match=rf"^attention on cpu in {precision} differ"):
        fast_paths(NODE, precision)


def broken_backward(found: Callable[..., Any]) -> Callable[..., Any]:
    """Gradients of the keys that are a tenth too large."""

    def backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = found(*arguments)
        return queries, keys * 1.1, values

    return backward


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_head_and_a_tokenizer_that_are_off(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    score, decode = head._score, StillVQ.decode

    def a_tenth_more(*arguments: Any) -> tuple[Tensor, Tensor]:
        logprobs, entropy = score(*arguments)
        return logprobs * 1.1, entropy

    monkeypatch.setattr(head, "_score", a_tenth_more)
    monkeypatch.setattr(StillVQ, "decode", lambda self, codes: decode(self, codes) * 1.1)
    with pytest.raises(UserError, match=rf"head and tokenizer on cpu in {precision} differ"):
        fast_paths(NODE, precision)


def test_what_is_no_number_is_no_small_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = StillVQ.decode
    monkeypatch.setattr(StillVQ, "decode", lambda self, codes: decode(self, codes) * torch.nan)
    with pytest.raises(UserError, match=r"^tokenizer .* inf"):
        fast_paths(NODE, "bf16")
