"""The tensors of a checkpoint folder: `model.safetensors`, or shards with `model.safetensors.index.json`.

Names, shapes and dtypes come from the files' headers, so that a folder is found wrong before a weight is read. An
index has to agree with its shards in every name: one that does not belongs to other files. Tensors are read as views
of the mapped files, which cost no memory until they are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from emu3.errors import UserError
from emu3.files import read_json


@dataclass(frozen=True)
class StoredTensor:
    """name: in the file. dtype: as safetensors spells it, such as "BF16"."""

    file: Path
    name: str
    shape: list[int]
    dtype: str


def stored_tensors(folder: Path) -> list[StoredTensor]:
    """What the weight files of `folder` hold. One file goes before an index of shards.

    Raises UserError if there are no weights, a file is missing or not whole, or index and shards disagree.
    """
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return _header(folder / SAFE_WEIGHTS_NAME)
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        raise UserError(f"{folder} has neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}: no weights to load")
    shard_of = _read_index(index)
    tensors = [tensor for shard in sorted(set(shard_of.values())) for tensor in _header(folder / shard)]
    listed = set(shard_of.items())
    held = {(tensor.name, tensor.file.name) for tensor in tensors}
    for told, pairs in (("lists", listed - held), ("lacks", held - listed)):
        if pairs:
            name, shard = min(pairs)
            raise UserError(
                f"{index} does not fit its shards: it {told} {len(pairs)} tensors that they "
                f"{'do not hold' if told == 'lists' else 'hold'} (first: {name} in {shard})"
            )
    return tensors


def read_tensors(wanted: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    """The tensors under the keys of `wanted`, each file opened once."""
    read: dict[str, Tensor] = {}
    for path in sorted({tensor.file for tensor in wanted.values()}):
        with safe_open(path, framework="pt") as file:
            read |= {name: file.get_tensor(tensor.name) for name, tensor in wanted.items() if tensor.file == path}
    return read


def _header(path: Path) -> list[StoredTensor]:
    if not path.is_file():
        raise UserError(f"{path} does not exist: the checkpoint is not whole")
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            return [StoredTensor(path, name, part.get_shape(), part.get_dtype()) for name, part in slices.items()]
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from error


def _read_index(path: Path) -> dict[str, str]:
    """Shard of each tensor. Shards are plain file names: an index must not reach outside its folder."""
    values = read_json(path)
    shard_of = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(shard_of, dict) or not shard_of:
        raise UserError(f"{path} is not an index of safetensors shards: it lacks weight_map")
    for shard in shard_of.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise UserError(f"{path} names a shard outside its folder: {shard}")
    return shard_of
