"""Names of models become folders, against a Hub on loopback and against caches on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub, commit_of, use
from hub_cache import COMMIT, cached
from huggingface_hub import constants

from emu3.errors import UserError
from emu3.hub import bytes_to_fetch, local_folder

FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "emu3.tiktoken": b"ranks",
    "emu3_vision_tokens.txt": b"codes",
    "modeling_emu3.py": b"code",
    "pytorch_model.bin": b"pickle",
    "training_args.bin": b"pickle",
    "rng_state_0.pth": b"pickle",
    "README.md": b"text",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub that can be reached: org/open (branches main and v1) and org/gated, whose list of files is public."""
    with FakeHub({"org/open": {"main": FILES, "v1": FILES}, "org/gated": {"main": FILES}}) as server:
        server.gated.add("org/gated")
        end = use(monkeypatch, server, cache.parent)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        yield server
        end()


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against asking the Hub for `runs/final` while that folder is here."""
    (tmp_path / "org" / "name@v1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("org/name@v1", Path("org/name@v1"), str(tmp_path)):
        assert local_folder(name) == Path(name)


@pytest.mark.parametrize("name", ["org/open", "org/open@v1", f"org/open@{commit_of('main')}"])
def test_only_files_without_code_are_fetched(hub: FakeHub, name: str) -> None:
    folder = local_folder(name)
    harmless = {"config.json", "model.safetensors", "emu3.tiktoken", "emu3_vision_tokens.txt"}
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {n: FILES[n] for n in harmless}
    assert set(hub.fetched) == harmless


def test_what_a_fetch_would_bring_is_known_before(hub: FakeHub, tmp_path: Path) -> None:
    """Guards a plan: bytes of the safe files alone, nothing for what is there, and nothing is fetched."""
    safe = sum(len(FILES[name]) for name in ("config.json", "model.safetensors", "emu3.tiktoken"))
    assert bytes_to_fetch("org/open") == safe + len(FILES["emu3_vision_tokens.txt"])
    assert bytes_to_fetch("org/open", ["*.json"]) == len(FILES["config.json"])
    assert hub.fetched == []
    local_folder("org/open", ["*.json"])
    assert bytes_to_fetch("org/open", ["*.json"]) == 0 == bytes_to_fetch(tmp_path)
    with pytest.raises(UserError, match="folder org/none does not exist, and as a Hub id"):
        bytes_to_fetch("org/none")


def test_offline_nothing_would_be_fetched(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a plan without a network: what the cache has whole is there, what it lacks is missing."""
    local_folder("org/open", ["*.json"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert bytes_to_fetch("org/open", ["*.json"]) == 0
    with pytest.raises(UserError, match=r"org/open does not exist, .* offline \(HF_HUB_OFFLINE is set\)"):
        bytes_to_fetch("org/open")


def test_a_caller_cannot_ask_for_code(hub: FakeHub) -> None:
    """Guards the promise that neither remote code nor a pickle reaches the disk."""
    assert {file.name for file in local_folder("org/open", ["*"]).iterdir()} == {
        name for name in FILES if not name.endswith((".py", ".bin", ".pth"))
    }
    assert {file.name for file in local_folder("org/open@v1", ["*.json"]).iterdir()} >= {"config.json"}
    assert not set(hub.fetched) & {"modeling_emu3.py", "pytorch_model.bin", "training_args.bin", "rng_state_0.pth"}


def test_what_was_fetched_is_found_offline(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    online = local_folder("org/open@v1")
    hub.fetched.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert local_folder("org/open@v1") == online
    assert hub.fetched == []


def test_a_download_that_was_cut_off_is_not_taken_for_whole(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    (local_folder("org/open") / "model.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"offline \(HF_HUB_OFFLINE is set\) and org/open is not whole in the cache"):
        local_folder("org/open")


def test_revisions_in_the_cache(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "config.json").write_text("{}")
    cached(tmp_path / "files", cache, "org/name", "v1")
    for name in ("org/name@v1", f"org/name@{COMMIT}"):
        assert (local_folder(name) / "config.json").read_text() == "{}"
    for name in ("org/name", "org/name@v2", "org/other@v1"):
        with pytest.raises(UserError, match=f"folder {name} does not exist, .*offline .* is not whole in the cache"):
            local_folder(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/gated", r"org/gated is gated: ask for access at http://127\S+/org/gated, then `hf auth login`"),
        ("org/none", "org/none is not on the Hub, or private: check the spelling, or `hf auth login`"),
        ("org/open@v9", "org/open has no branch, tag or commit 'v9'"),
        ("org/na..me", "Cannot have -- or .. in repo_id"),
    ],
)
def test_what_the_hub_refuses(hub: FakeHub, name: str, message: str) -> None:
    """Guards both readings of a name, and one line in place of the library's traceback."""
    with pytest.raises(UserError, match=f"^folder {name} does not exist, and as a Hub id: {message}") as caught:
        local_folder(name)
    assert "\n" not in str(caught.value)


def test_a_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(UserError, match=r"the Hub cannot be reached and org/name is not whole in the cache"):
        local_folder("org/name")


@pytest.mark.parametrize("name", ["nowhere", "/no/where", "./org/name", "a/b/c", "org/name@", "org/name@v 1"])
def test_a_name_that_can_only_be_a_folder(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="does not exist, and that is no Hub id"):
        local_folder(name)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is a file, not a folder"):
        local_folder(tmp_path / "model.safetensors")
