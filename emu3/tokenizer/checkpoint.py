"""From a folder or Hub id to the weights of a still tokenizer, in whichever of the known layouts it is there."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emu3.errors import UserError, one_line
from emu3.files import read_json, sha256_of
from emu3.hub import local_folder
from emu3.tensor_files import TensorFiles, TensorHeaders
from emu3.tokenizer.config import Parts, StillVQConfig
from emu3.tokenizer.fold import CODEBOOK, fold
from emu3.tokenizer.published import Layout, layout_of

CONFIG_FILE = "config.json"


def read_checkpoint(
    name: Path | str, dtype: torch.dtype | None, parts: Parts
) -> tuple[StillVQConfig, dict[str, Tensor]]:
    """Config and state dict of `StillVQ(config, parts)`; tensors of the other half are not read.

    Published layouts are folded into `dtype` (None: that of their codebook); the project's own comes as saved.

    Raises UserError, in one line, for a folder that holds none of the layouts, a config or an index that does not
    fit, a missing or unknown tensor, and a file that is missing or cut short.
    """
    layout = _layout(name)
    return layout.config, still_state(name, layout, TensorFiles.of(name, layout.prefixes), dtype, parts)


def still_state(
    name: Path | str, layout: Layout, tensors: TensorHeaders, dtype: torch.dtype | None, parts: Parts
) -> dict[str, Tensor]:
    """The state dict of `read_checkpoint` from its tensors, without numbers if they have none. name: for messages."""
    _check_any(name, tensors)
    if layout.folded:
        absent = tuple(f"{half}." for half in ("encoder", "decoder") if parts not in ("both", half))
        return {tensor: tensors[tensor] for tensor in tensors if not tensor.startswith(absent)}
    if dtype is None and CODEBOOK in tensors:
        dtype = tensors[CODEBOOK].dtype
    try:
        return fold(tensors, layout.config, dtype or torch.float32, parts, layout.spelling)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except (RuntimeError, IndexError) as error:  # a tensor of another rank or size than its layer's
        raise UserError(f"{name} does not hold the weights of its {CONFIG_FILE}: {one_line(error)}") from None


def weights_digest(name: Path | str) -> str:
    """By what tokenised data names the tokenizer in the folder or Hub id `name`: 64 hex digits.

    The SHA-256 of its weights file; of several, that of what `sha256sum` prints about them in the order of their names.
    Files without a tensor of the tokenizer do not count. The same weights in another layout have another digest.

    Raises UserError as `read_checkpoint`.
    """
    tensors = TensorFiles.of(name, _layout(name).prefixes)
    _check_any(name, tensors)
    files = tensors.files
    digests = [sha256_of(file) for file in files]
    if len(files) == 1:
        return digests[0]
    lines = "".join(f"{digest}  {file.name}\n" for digest, file in zip(digests, files, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def layout_in(values: Any, path: Path) -> Layout:
    """The layout that the content of the config `path` announces. Raises UserError, naming it, if there is none."""
    try:
        return layout_of(values)
    except (UserError, TypeError, ValueError, LookupError) as error:  # the file may hold anything
        raise UserError(f"{path}: {one_line(error)}") from None


def _layout(name: Path | str) -> Layout:
    path = local_folder(name, (CONFIG_FILE,)) / CONFIG_FILE
    return layout_in(read_json(path), path)


def _check_any(name: Path | str, tensors: TensorHeaders) -> None:
    if not tensors:
        raise UserError(f"{name} holds no tensor of a vision tokenizer, only of other networks")
