"""The reference in main memory: what is copied, how, and what is left of it. CUDA is a stand-in here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rl.training.policy import TokenLogprobs, frozen_reference, load_model


def tensors_of(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


class Device:
    """What a visit does: which memory was pinned, what was fetched and whether that waited, what was computed on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pinned: dict[int, Tensor] = {}
        self.fetched: list[tuple[int, bool]] = []
        self.used: list[Tensor] = []
        self.broken = False
        to = Tensor.to

        def pin_memory(tensor: Tensor) -> Tensor:
            copy = tensor.clone()
            self.pinned[copy.data_ptr()] = copy
            return copy

        def fetch(tensor: Tensor, *arguments: Any, **options: Any) -> Tensor:
            if arguments != (torch.device("cuda"),):
                return to(tensor, *arguments, **options)
            self.fetched.append((tensor.data_ptr(), options.get("non_blocking", False)))
            return tensor.clone()

        def score(module: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
            self.used = [tensor.data for tensor in tensors_of(module)]
            self.module = module
            if self.broken:
                raise FloatingPointError
            return torch.zeros(1), torch.zeros(1)

        monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
        monkeypatch.setattr(Tensor, "to", fetch)
        monkeypatch.setattr(TokenLogprobs, "forward", score)


def test_on_a_gpu_it_is_pinned_once_and_fetched_without_waiting(
    make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pageable memory goes through a buffer of the driver's in every step, and the host waits for it. And nothing is
    copied back or stays on the device, whatever happens there."""
    config = make_config(compute={"reference": "offloaded", "precision": "bf16", "zero": 2})
    exact = tensors_of(load_model(config.model, config))
    device = Device(monkeypatch)
    reference = frozen_reference(config, SimpleNamespace(device=torch.device("cuda")))  # type: ignore[arg-type]
    assert len(device.pinned) == len(exact) and not device.fetched
    for device.broken in (False, False, True):
        device.fetched.clear()
        if device.broken:
            with pytest.raises(FloatingPointError):
                reference.logprobs([None])  # type: ignore[list-item]
        else:
            reference.logprobs([None])  # type: ignore[list-item]
        assert device.fetched == [(pointer, True) for pointer in device.pinned]
        assert not {tensor.data_ptr() for tensor in device.used} & device.pinned.keys()
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(device.used, exact, strict=True))
        assert [tensor.data_ptr() for tensor in tensors_of(device.module)] == list(device.pinned)
    assert len(device.pinned) == len(exact)
