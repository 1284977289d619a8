"""The tensors of a checkpoint, by name: model.safetensors, or shards and their index. Nothing else is opened.

Names, shapes and dtypes come from the files' headers (`TensorHeaders`), which may be on the Hub (`emu3.hub_headers`);
tensors one at a time when they are asked for, as views of the mapped files (`TensorFiles`): a part of a large
checkpoint costs what that part costs. From the Hub only the files that hold the needed tensors are fetched.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from emu3.errors import UserError, one_line
from emu3.files import check_fetched, read_json, sha256_of
from emu3.hub import local_folder

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
_PART = re.compile(r"model-\d+-of-\d+\.safetensors")

# The index is somebody else's file: nothing in it may lead out of its folder.
SHARD_NAME = re.compile(r"\w[\w.-]*\.safetensors", re.ASCII)


FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Floating-point dtypes as safetensors spells them; weights of this project have no others."""

Header = Mapping[str, tuple[list[int], str]]
"""Of each tensor in a file, its shape and its dtype as safetensors spells it, such as "BF16"."""


class TensorHeaders(Mapping[str, Tensor]):
    """Names, shapes and dtypes without the numbers: each tensor is one on the device `meta`, in float32 where it is not
    floating point.

    files: those that hold the tensors, sorted by name.
    """

    def __init__(self, places: Mapping[str, tuple[Path, str]], read: Callable[[Path], Header]) -> None:
        """places: of each tensor, the file and its name there. read: the header of a file, asked for once."""
        self._places = dict(places)
        self._read = read
        self._headers: dict[Path, Header] = {}
        self.files = sorted({file for file, _ in self._places.values()})

    def __getitem__(self, name: str) -> Tensor:
        """Raises UserError, like `shape_and_dtype`, if the file is missing, cut short, or lacks the tensor."""
        shape, dtype = self.shape_and_dtype(name)
        return torch.empty(shape, dtype=FLOATS.get(dtype, torch.float32), device="meta")

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def shape_and_dtype(self, name: str) -> tuple[list[int], str]:
        """From the file's header. The dtype is as safetensors spells it."""
        file, full = self._places[name]
        header = self._header(file)
        if full not in header:
            raise UserError(f"{file} lacks {full!r}, which its index says it holds")
        return header[full]

    def check_index(self) -> None:
        """Raise UserError if the files hold other tensors than these: their index then belongs to other files.

        For tensors that were taken without a prefix.
        """
        listed = set(self._places.values())
        held = {(file, name) for file in self.files for name in self._header(file)}
        for verb, places in (("lists", listed - held), ("lacks", held - listed)):
            if places:
                file, name = min(places)
                raise UserError(
                    f"{file.parent / INDEX_FILE} does not fit its shards: it {verb} {len(places)} tensors that they "
                    f"{'do not hold' if verb == 'lists' else 'hold'} (first: {name} in {file.name})"
                )

    def without_numbers(self) -> TensorHeaders:
        """These tensors' names, shapes and dtypes alone."""
        return TensorHeaders(self._places, self._header)

    def _header(self, file: Path) -> Header:
        if file not in self._headers:
            self._headers[file] = self._read(file)
        return self._headers[file]


class TensorFiles(TensorHeaders):
    """Tensors on the CPU, each read when it is asked for."""

    def __init__(self, places: Mapping[str, tuple[Path, str]]) -> None:
        """places: of each tensor, the file and its name there."""
        super().__init__(places, self._read_header)
        self._readers: dict[Path, Any] = {}

    @classmethod
    def of(cls, name: Path | str, prefixes: tuple[str, ...] = ("",)) -> Self:
        """The tensors of the folder or Hub id `name` whose names begin with one of `prefixes`, which is left out.

        A single file goes before an index, as in transformers. Raises UserError if there is neither, if the index is
        no index or names anything but files beside it, or if the single file is cut short or no safetensors file.
        """
        folder = local_folder(name, (INDEX_FILE,))
        if (folder / WEIGHTS_FILE).is_file() or not (folder / INDEX_FILE).is_file():
            file = local_folder(name, (WEIGHTS_FILE,)) / WEIGHTS_FILE
            return cls(places_in(dict.fromkeys(_reader(file).keys(), file), prefixes))
        shards = shards_of(read_json(folder / INDEX_FILE), folder / INDEX_FILE)
        needed = places_in({full: Path(file) for full, file in shards.items()}, prefixes)
        folder = local_folder(name, (INDEX_FILE, *sorted({file.name for file, _ in needed.values()})))
        return cls({short: (folder / file, full) for short, (file, full) in needed.items()})

    def digest(self) -> str:
        """64 hex digits that name the files' content: the SHA-256 of one file; of several, that of what `sha256sum`
        prints about them in the order of their names. A file that has not changed is read once by a process."""
        digests = []
        for file in self.files:
            found = file.stat()
            digests.append(_digest_of(file, found.st_size, found.st_mtime_ns, found.st_ino))
        if len(digests) == 1:
            return digests[0]
        lines = "".join(f"{digest}  {file.name}\n" for digest, file in zip(digests, self.files, strict=True))
        return hashlib.sha256(lines.encode()).hexdigest()

    def __getitem__(self, name: str) -> Tensor:
        file, full = self._places[name]
        try:
            tensor: Tensor = self._opened(file).get_tensor(full)
        except SafetensorError:
            raise UserError(f"{file} lacks {full!r}, which its index says it holds") from None
        return tensor

    def _read_header(self, file: Path) -> Header:
        reader = self._opened(file)
        slices = {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118  # no mapping
        return {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}

    def _opened(self, file: Path) -> Any:
        if file not in self._readers:
            self._readers[file] = _reader(file)
        return self._readers[file]


def places_in(files: Mapping[str, Path], prefixes: tuple[str, ...] = ("",)) -> dict[str, tuple[Path, str]]:
    """What `TensorHeaders` takes: of each tensor in `files` (file by name) whose name begins with a prefix, by what
    follows it."""
    return {short: (files[full], full) for short, full in _under(prefixes, files)}


def shards_of(index: Any, where: Path) -> dict[str, str]:
    """Tensor name -> file name, from the content of an index. Raises UserError if it is none, or names anything but
    files beside it. where: for the message."""
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{where} is not an index of safetensors files: it has no weight_map")
    for tensor, file in shards.items():
        if not isinstance(file, str) or not SHARD_NAME.fullmatch(file):
            raise UserError(f"{where} says that {tensor!r} is in {file!r}: only .safetensors files beside it are read")
    return shards


def found_instead(folder: Path) -> str:
    """What a folder without a checkpoint holds, for the end of a message; "" for nothing that is known."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if ADAPTER_CONFIG in names:
        about = read_json(folder / ADAPTER_CONFIG)
        base = about.get("base_model_name_or_path") if isinstance(about, dict) else None
        return f": the folder holds an adapter of {base!r}, which has to be merged into its base first"
    if INDEX_FILE not in names and (shards := [name for name in names if _PART.fullmatch(name)]):
        return f": the folder holds {shards[0]} and no {INDEX_FILE}"
    others = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".gguf", ".safetensors"))]
    return f": the folder holds {', '.join(others[:3])}" if others else ""


def _under(prefixes: tuple[str, ...], names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Of each name that begins with a prefix, what follows it and the whole."""
    for name in names:
        for prefix in prefixes:
            if name.startswith(prefix):
                yield name.removeprefix(prefix), name
                break


@lru_cache(maxsize=256)
def _digest_of(file: Path, *_as_it_was: int) -> str:
    return sha256_of(file)


def _reader(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"{file} does not exist, and no weights but safetensors are read{found_instead(file.parent)}")
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        check_fetched(file, "a safetensors file")
        raise UserError(
            f"{file} is not a whole safetensors file: fetch or write it again ({one_line(error)})"
        ) from None
