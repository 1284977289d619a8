"""Where a metric's weights and libraries come from, and what they are called in its version.

A person may name one folder with the weights of all metrics; it is then the only place that is looked at:

    WEIGHTS/clip-vit-base-patch32/         a transformers model by the last part of its id: config.json, safetensors
    WEIGHTS/squeezenet1_1-b8a52dc0.pth     a published file by its own name

Otherwise models are pinned revisions on the Hub (`emu3.hub`: safetensors only), and files are in PyTorch's cache or
fetched into it. ImageNet's SqueezeNet and FID's Inception were published as PyTorch files alone: those are pinned by
the digest that their names carry, and read by PyTorch's restricted reader, which builds tensors and runs no code. What
is not there raises `MissingDependency`; what is there and broken is a `UserError`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from huggingface_hub import constants
from torch import Tensor

from emu3.errors import UserError, one_line
from emu3.files import sha256_of
from emu3.hub import local_folder

if TYPE_CHECKING:  # takes seconds to import, which pixels need nothing of
    from transformers import PreTrainedModel

# PyTorch's own convention: NAME-<first hex digits of the file's SHA-256>.pth
HASHED_NAME = re.compile(r"(?P<stem>.+)-(?P<digest>[0-9a-f]{8,})\.pth")

Model = TypeVar("Model", bound="PreTrainedModel")


class MissingDependency(Exception):
    """Weights or a package that a metric needs are not there. The message is one line."""


def device() -> torch.device:
    """Where metrics compute: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def library(module: str, distribution: str) -> ModuleType:
    """Import `module` of the package `distribution`. Raises `MissingDependency` if that does not work."""
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # a build for another machine fails with RuntimeError
        raise MissingDependency(f"the package {distribution} cannot be used here: {one_line(error)}") from error


def version_of(distribution: str) -> str:
    """`name 1.2.3` of an installed package."""
    return f"{distribution} {importlib.metadata.version(distribution)}"


def package_file(module: str, path: str, advice: str) -> Path:
    """A data file of an installed package, found without running it. Raises `MissingDependency` with `advice`."""
    spec = importlib.util.find_spec(module)
    for place in (spec and spec.submodule_search_locations) or []:
        if (file := Path(place) / path).is_file():
            return file
    raise MissingDependency(f"{path} of {module} is not installed: {advice}")


def model_folder(hub_id: str, weights: Path | None) -> Path:
    """Folder of the transformers model `hub_id` (org/name@revision). Raises `MissingDependency` if it cannot be had."""
    try:
        folder = local_folder(hub_id) if weights is None else weights / hub_id.split("@")[0].split("/")[1]
    except UserError as error:
        raise MissingDependency(str(error)) from error
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise MissingDependency(
            f"{folder} has no config.json with *.safetensors (save_pretrained of {hub_id} makes them)"
        )
    return folder


def load_model(kind: type[Model], folder: Path, **options: Any) -> Model:
    """A transformers model in float32, for inference, on `device()`.

    Raises `UserError` where the folder's tensors do not make up the whole model: what is lacking would be random.
    """
    try:
        loaded: Any = kind.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder} cannot be loaded as {kind.__name__}: {one_line(error)}") from error
    model, report = loaded
    if lacking := sorted(report["missing_keys"]):
        raise UserError(f"{folder} lacks {len(lacking)} tensors of a {kind.__name__}, such as {lacking[0]}")
    return model.eval().to(device())


def folder_digest(folder: Path, extra: Sequence[str]) -> str:
    """12 hex digits over the safetensors, config.json and those of `extra` that are there: what a number hangs on."""
    files = [*sorted(folder.glob("*.safetensors")), folder / "config.json", *(folder / name for name in extra)]
    digests = [f"{file.name} {sha256_of(file)}" for file in files if file.is_file()]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:12]


def torch_file(url: str, weights: Path | None) -> Path:
    """The file of `url`, whose name carries its digest. In `weights` another one will do, if the file agrees with it.

    Raises `MissingDependency` if it cannot be had, `UserError` if it is not what its name says.
    """
    name = url.rsplit("/", 1)[1]
    stem, digest = _parts_of(name)
    if weights is None:
        file = Path(torch.hub.get_dir()) / "checkpoints" / name
        if not file.is_file():
            _fetch(url, file, digest)
    else:
        found = [file for file in sorted(weights.glob(f"{stem}-*.pth")) if HASHED_NAME.fullmatch(file.name)]
        if not found:
            raise MissingDependency(f"{weights} has no {name} (from {url})")
        file = found[0]
        _, digest = _parts_of(file.name)
    if not sha256_of(file).startswith(digest):
        raise UserError(f"{file} is broken: its SHA-256 does not begin as its name says; fetch it again from {url}")
    return file


def _parts_of(name: str) -> tuple[str, str]:
    match = HASHED_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} carries no digest")
    return match["stem"], match["digest"]


def _fetch(url: str, file: Path, digest: str) -> None:
    if constants.is_offline_mode():
        raise MissingDependency(
            f"offline (HF_HUB_OFFLINE is set) and {file.name} is not in PyTorch's cache {file.parent}"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(file), hash_prefix=digest, progress=False)
    except (OSError, RuntimeError) as error:  # no connection; another digest
        raise MissingDependency(f"{url} could not be fetched: {one_line(error)}") from error


def tensors(file: Path) -> dict[str, Tensor]:
    """The named tensors of a PyTorch file, on the CPU. Raises `UserError` if it holds anything that is not data."""
    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{file} is no file of tensors ({type(error).__name__}): fetch it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file} holds something else than named tensors")
    return state
