"""The tensors of a checkpoint, by name: model.safetensors, or shards and their index. Nothing else is opened.

Names, shapes and dtypes come from the files' headers, tensors one at a time when they are asked for, as views of the
mapped files: a part of a large checkpoint costs what that part costs. From the Hub only the files that hold wanted
tensors are fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from torch import Tensor

from emu3.errors import UserError, one_line
from emu3.files import read_json
from emu3.hub import local_folder

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# The index is somebody else's file: nothing in it may lead out of its folder.
SHARD_NAME = re.compile(r"\w[\w.-]*\.safetensors", re.ASCII)


class TensorFiles(Mapping[str, Tensor]):
    """Tensors on the CPU, each read when it is asked for.

    files: those that hold the tensors, sorted by name.
    """

    def __init__(self, places: Mapping[str, tuple[Path, str]]) -> None:
        """places: of each tensor, the file and its name there."""
        self._places = dict(places)
        self._readers: dict[Path, Any] = {}
        self.files = sorted({file for file, _ in self._places.values()})

    @classmethod
    def of(cls, name: Path | str, prefixes: tuple[str, ...] = ("",)) -> Self:
        """The tensors of the folder or Hub id `name` whose names begin with one of `prefixes`, which is left out.

        A single file goes before an index, as in transformers. Raises UserError if there is neither, if the index is
        no index or names anything but files beside it, or if the single file is cut short or no safetensors file.
        """
        folder = local_folder(name, (INDEX_FILE,))
        if (folder / WEIGHTS_FILE).is_file() or not (folder / INDEX_FILE).is_file():
            file = local_folder(name, (WEIGHTS_FILE,)) / WEIGHTS_FILE
            return cls({short: (file, full) for short, full in _under(prefixes, _reader(file).keys())})
        shards = _read_index(folder / INDEX_FILE)
        wanted = dict(_under(prefixes, shards))
        folder = local_folder(name, (INDEX_FILE, *sorted({shards[full] for full in wanted.values()})))
        return cls({short: (folder / shards[full], full) for short, full in wanted.items()})

    def __getitem__(self, name: str) -> Tensor:
        """Raises UserError, like `shape_and_dtype`, if the file is missing, cut short, or lacks the tensor."""
        file, full = self._places[name]
        try:
            tensor: Tensor = self._opened(file).get_tensor(full)
        except SafetensorError as error:
            raise _lacks(file, full, error) from None
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def shape_and_dtype(self, name: str) -> tuple[list[int], str]:
        """From the file's header. The dtype is as safetensors spells it, such as "BF16"."""
        file, full = self._places[name]
        try:
            part = self._opened(file).get_slice(full)
        except SafetensorError as error:
            raise _lacks(file, full, error) from None
        return part.get_shape(), part.get_dtype()

    def check_index(self) -> None:
        """Raise UserError if the files hold other tensors than these: their index then belongs to other files.

        For tensors that were taken without a prefix.
        """
        listed = set(self._places.values())
        held = {(file, name) for file in self.files for name in self._opened(file).keys()}  # noqa: SIM118  # no mapping
        for told, places in (("lists", listed - held), ("lacks", held - listed)):
            if places:
                file, name = min(places)
                raise UserError(
                    f"{file.parent / INDEX_FILE} does not fit its shards: it {told} {len(places)} tensors that they "
                    f"{'do not hold' if told == 'lists' else 'hold'} (first: {name} in {file.name})"
                )

    def _opened(self, file: Path) -> Any:
        if file not in self._readers:
            self._readers[file] = _reader(file)
        return self._readers[file]


def _under(prefixes: tuple[str, ...], names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Of each name that begins with a prefix, what follows it and the whole."""
    for name in names:
        for prefix in prefixes:
            if name.startswith(prefix):
                yield name.removeprefix(prefix), name
                break


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name -> file name."""
    index = read_json(path)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{path} is not an index of safetensors files: it has no weight_map")
    for tensor, file in shards.items():
        if not isinstance(file, str) or not SHARD_NAME.fullmatch(file):
            raise UserError(f"{path} says that {tensor!r} is in {file!r}: only .safetensors files beside it are read")
    return shards


def _reader(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"{file} does not exist, and no weights but safetensors are read")
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file} is not a whole safetensors file: fetch or write it again ({one_line(error)})"
        ) from None


def _lacks(file: Path, name: str, error: SafetensorError) -> UserError:
    return UserError(f"{file} lacks {name!r}, which its index says it holds: {one_line(error)}")
