"""An optimizer's state on disk: its tensors as safetensors under their parameters' names, the rest as JSON.

torch.save would write a pickle, and order the tensors by number instead of name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from emu3.errors import UserError
from emu3.files import read_json, write_json

TENSORS = "optimizer.safetensors"
GROUPS = "optimizer.json"


def save_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write the state of `optimizer`, which holds parameters of `model`, as two files in `folder`."""
    names = _names(model, optimizer)
    state = optimizer.state_dict()
    tensors = {
        f"{names[index]}/{key}": value.contiguous()
        for index, values in state["state"].items()
        for key, value in values.items()
    }
    save_file(tensors, folder / TENSORS)
    write_json(folder / GROUPS, state["param_groups"])


def load_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put back what `save_optimizer` wrote; `optimizer` has the same parameters in the same groups.

    Raises UserError if the stored groups are others.
    """
    groups: list[dict[str, Any]] = read_json(folder / GROUPS)
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in optimizer.param_groups]:
        raise UserError(f"{folder / GROUPS} belongs to an optimizer of other parameters")
    for group in groups:
        group["betas"] = tuple(group["betas"])
    index_of = {name: index for index, name in enumerate(_names(model, optimizer))}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(folder / TENSORS).items():
        name, _, kind = key.rpartition("/")
        state.setdefault(index_of[name], {})[kind] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimizer's parameters in its own order, by which its state numbers them."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
