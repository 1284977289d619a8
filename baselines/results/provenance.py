"""Where a number comes from: fingerprints of files, and versions of the libraries that shape images.

A path says little next week, so data and weights are told by the SHA-256 of their contents. In huggingface_hub's cache
a large file's name is that digest already, so a model from the Hub and a copy of it in a folder have one fingerprint,
and the former costs nothing.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from emu3.errors import UserError
from emu3.files import sha256_of

LIBRARIES = ("numpy", "pillow", "torch", "transformers", "diffusers", "vllm")
_SHA256 = re.compile("[0-9a-f]{64}")


def fingerprint(files: Sequence[Path]) -> str:
    """SHA-256 over names and contents."""
    return hashlib.sha256("".join(f"{file.name} {_digest(file)}\n" for file in files).encode()).hexdigest()


def identity(name: str, folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    """What the model `name` in `folder` is: the fingerprint of its files (patterns as `Path.glob` takes them) and, of
    one from the Hub, its id and commit. Raises `UserError` if there are no such files."""
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    if not files:
        raise UserError(f"{folder} is no model's folder: it holds no {' and no '.join(patterns)}")
    found = {"files": fingerprint(files)}
    # huggingface_hub's cache has a folder per commit.
    return found | ({"hub": name, "commit": folder.name} if folder.parent.name == "snapshots" else {})


def versions() -> dict[str, str]:
    """Version of Python and of `LIBRARIES`, those that are installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _digest(file: Path) -> str:
    blob = file.resolve()
    return blob.name if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name) else sha256_of(file)
