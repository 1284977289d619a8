"""Where a model's files are: a local folder, or a repository of the Hugging Face Hub by its id.

`org/name` is the default branch, `org/name@revision` a branch, tag or commit. Only files that cannot run code are
fetched (JSON, safetensors, rank files, text): no Python, no pickle, whatever a caller asks for. The cache, the login
and `HF_HUB_OFFLINE=1` are huggingface_hub's own. A folder that exists goes before a repository of the same name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from emu3.errors import UserError, one_line

# Config and text tokenizer, without the weights.
SMALL_FILES = ("*.json", "*.tiktoken", "*.txt")
SAFE_FILES = (*SMALL_FILES, "*.safetensors")
UNSAFE_FILES = ("*.py", "*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.msgpack", "*.h5")

HUB_ID = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[^@\s]+))?", re.ASCII)


def local_folder(name: str | Path, allow: Sequence[str] | None = None) -> Path:
    """The folder that `name` stands for: itself if it exists, else the Hub repository of that id, fetched or cached.

    allow: patterns of the files to fetch, `SAFE_FILES` by default; files of `UNSAFE_FILES` are never fetched.

    Raises UserError if there is no such folder and no such repository or revision, if access to it has to be asked
    for, or if the Hub cannot be reached and the cache lacks it.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{name} is a file, not a folder with a model's files")
    match = HUB_ID.fullmatch(str(name))
    if match is None:
        raise UserError(f"folder {name} does not exist, and that is no Hub id (org/name or org/name@revision) either")
    try:
        return _fetch(match["repository"], match["revision"], list(allow or SAFE_FILES))
    except UserError as error:
        raise UserError(f"folder {name} does not exist, and as a Hub id: {error}") from error.__cause__


def _fetch(repository: str, revision: str | None, allow: list[str]) -> Path:
    try:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=allow, ignore_patterns=list(UNSAFE_FILES))
        )
    except GatedRepoError as error:
        raise UserError(
            f"{repository} is gated: ask for access at {constants.ENDPOINT}/{repository}, then `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{repository} has no branch, tag or commit {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{repository} is not there, or private: check the spelling, or `hf auth login`") from error
    except HFValidationError as error:
        raise UserError(one_line(error)) from error
    except LocalEntryNotFoundError as error:
        what = f"{repository} at {revision}" if revision else repository
        if constants.is_offline_mode():
            raise UserError(f"offline (HF_HUB_OFFLINE is set) and {what} is not whole in the cache") from error
        raise UserError(f"the Hub cannot be reached and {what} is not whole in the cache") from error
    except Exception as error:  # transport, proxy and storage errors have no common class
        raise UserError(f"{repository} could not be fetched: {type(error).__name__}: {one_line(error)}") from error
