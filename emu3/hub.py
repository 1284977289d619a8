"""Models and datasets of the Hugging Face Hub, by id: `org/name`, or `org/name@revision` (a branch, tag or commit).

Of a model only files that cannot run code are fetched (JSON, safetensors, rank files, text): no Python, no pickle,
whatever a caller asks for; a folder that exists goes before a repository of the same name. Of a dataset the listing of
a commit comes first, then the files that are asked for. The cache, the login and `HF_HUB_OFFLINE=1` are
huggingface_hub's own; the listing of a commit is cached with its files, so offline, or without a network, the same
calls are answered from the cache, and files that it lacks are noticed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from glob import escape
from pathlib import Path
from typing import Any

from huggingface_hub import HfFileSystem, constants, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import (
    DryRunError,
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
    with _as_a_folder(name, match):
        return Path(snapshot_download(**_chosen(match, allow)))


def bytes_to_fetch(name: str | Path, allow: Sequence[str] | None = None) -> int:
    """Bytes that `local_folder` with the same arguments would fetch now; 0 for a folder, and where the Hub cannot be
    reached for what the cache has whole. Nothing is fetched. Raises as `local_folder`."""
    folder, match = Path(name), HUB_ID.fullmatch(str(name))
    if folder.exists() or match is None:
        local_folder(name, allow)
        return 0
    with _as_a_folder(name, match):
        try:
            files = snapshot_download(**_chosen(match, allow), dry_run=True)
        except DryRunError:
            snapshot_download(**_chosen(match, allow), local_files_only=True)
            return 0
    return sum(file.file_size or 0 for file in files if file.will_download)


def _chosen(match: re.Match[str], allow: Sequence[str] | None) -> dict[str, Any]:
    """What of a repository is fetched, for `snapshot_download`."""
    patterns = {"allow_patterns": list(allow or SAFE_FILES), "ignore_patterns": list(UNSAFE_FILES)}
    return {"repo_id": match["repository"], "revision": match["revision"], **patterns}


@contextmanager
def _as_a_folder(name: str | Path, match: re.Match[str]) -> Iterator[None]:
    """Raises UserError about the name of a model that is no folder here."""
    try:
        with hub_errors(match["repository"], match["revision"]):
            yield
    except UserError as error:
        raise UserError(f"folder {name} does not exist, and as a Hub id: {error}") from error.__cause__


class HubDataset:
    """One commit of a dataset on the Hub. names: its files, relative to its root. address: of that root, for fsspec.

    name: `org/name`, or `org/name@revision`. Raises UserError if it cannot be reached.
    """

    def __init__(self, name: str) -> None:
        match = HUB_ID.fullmatch(name)
        if match is None:
            raise UserError(f"{name} is no Hub id (org/name or org/name@revision); a dataset on disk: --source local")
        self.name, self.repository, self._revision = name, match["repository"], match["revision"]
        # The card alone, which nearly every dataset has: it brings the commit and, with it, the listing.
        self.commit = self._download(self._revision, ["README.md", ".gitattributes"]).name
        with self._errors():
            tree = get_cached_repo_tree(self.repository, repo_type="dataset", revision=self.commit)
        self.names = sorted(file.path for file in tree)
        self.origin = f"{self.repository}@{self.commit}"
        self.address = f"hf://datasets/{self.origin}/"

    def fetch(self, names: Sequence[str]) -> Path:
        """The root of the dataset on disk, with the files `names` in it. Raises UserError if one cannot be had."""
        return self._download(self.commit, [escape(name) for name in names])

    def open(self, name: str) -> Any:
        """A file as a stream of bytes, of which only the ranges that are read are asked for."""
        files = HfFileSystem(endpoint=constants.ENDPOINT, skip_instance_cache=True)
        return files.open(self.address + name, "rb", cache_type="none")

    def _download(self, revision: str | None, patterns: list[str]) -> Path:
        with self._errors():
            return Path(
                snapshot_download(self.repository, repo_type="dataset", revision=revision, allow_patterns=patterns)
            )

    def _errors(self) -> AbstractContextManager[None]:
        return hub_errors(f"dataset {self.repository}", self._revision, f"datasets/{self.repository}")


@contextmanager
def hub_errors(what: str, revision: str | None = None, page: str | None = None) -> Iterator[None]:
    """Raises UserError for what huggingface_hub raises inside.

    what: the repository, as a message names it. page: its address on the Hub, `what` by default.
    """
    at = f"{what} at {revision}" if revision else what
    try:
        yield
    except UserError:
        raise
    except GatedRepoError as error:
        raise UserError(
            f"{what} is gated: ask for access at {constants.ENDPOINT}/{page or what}, then `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{what} has no branch, tag or commit {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{what} is not on the Hub, or private: check the spelling, or `hf auth login`") from error
    except HFValidationError as error:
        raise UserError(one_line(error)) from error
    except LocalEntryNotFoundError as error:
        if constants.is_offline_mode():
            raise UserError(f"offline (HF_HUB_OFFLINE is set) and {at} is not whole in the cache") from error
        raise UserError(f"the Hub cannot be reached and {at} is not whole in the cache") from error
    except Exception as error:  # transport, proxy, cache and storage errors have no common class
        raise UserError(f"{at} could not be fetched: {type(error).__name__}: {one_line(error)}") from error
