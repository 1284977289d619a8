"""Files of a data set on the Hugging Face Hub, by id and revision, in huggingface_hub's own cache.

The listing of a commit is cached with its files, so with `HF_HUB_OFFLINE=1`, or without a network, the same calls
answer from the cache, and notice files that are not there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from huggingface_hub import get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from emu3.errors import UserError
from emu3.hub import HUB_ID


class HubData:
    """One commit of a data set on the Hub. names: its files, relative to its root.

    name: `org/name`, or `org/name@revision` with a branch, tag or commit. Raises UserError if it cannot be reached.
    """

    def __init__(self, name: str) -> None:
        match = HUB_ID.fullmatch(name)
        if match is None:
            raise UserError(f"{name} is no Hub id (org/name or org/name@revision); a data set on disk: --source local")
        self._name, self._repository = name, match["repository"]
        # The card alone: what is wanted is the commit and, with it, the listing.
        self._commit = self._download(match["revision"], ["README.md"]).name
        with _hub_errors(name):
            tree = get_cached_repo_tree(self._repository, repo_type="dataset", revision=self._commit)
        self.names = sorted(file.path for file in tree)

    def fetch(self, names: Sequence[str]) -> Path:
        """The root of the data set on disk, with the files `names` in it. Raises UserError if one cannot be had."""
        return self._download(self._commit, [escape(name) for name in names])

    def _download(self, revision: str | None, patterns: list[str]) -> Path:
        with _hub_errors(self._name):
            return Path(
                snapshot_download(self._repository, repo_type="dataset", revision=revision, allow_patterns=patterns)
            )


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    try:
        yield
    except GatedRepoError as error:
        raise UserError(f"data set {name} is gated: ask for access on its page, then `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise UserError(f"data set {name} has no such branch, tag or commit") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"data set {name} is not on the Hub, or private (`hf auth login`); one on disk: --source local"
        ) from error
    except Exception as error:  # transport, proxy, cache and storage errors have no common class
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"data set {name} can neither be fetched nor is it whole in the cache: {why}") from error
