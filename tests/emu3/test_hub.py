"""Names of models become folders, against a Hub on loopback and against caches on disk."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hub_cache import COMMIT, cached
from huggingface_hub import close_session, constants

from emu3.errors import UserError
from emu3.hub import local_folder

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


class FakeHub(BaseHTTPRequestHandler):
    """Repositories org/open (branch main, tag v1) and org/gated, whose list of files is public; no other."""

    protocol_version = "HTTP/1.1"
    fetched: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repository, what, revision = "/".join(parts[2:4]), *(*parts[4:], "revision", "main")[:2]
            if repository not in ("org/open", "org/gated"):
                self._answer(404, {"X-Error-Code": "RepoNotFound"})
            elif revision not in ("main", "v1", COMMIT):
                self._answer(404, {"X-Error-Code": "RevisionNotFound"})
            elif what == "tree":
                files = [{"type": "file", "path": n, "size": len(b), "oid": n} for n, b in FILES.items()]
                self._answer(200, {}, json.dumps(files).encode())
            else:
                self._answer(200, {}, json.dumps({"id": repository, "sha": COMMIT, "siblings": []}).encode())
        elif parts[2:3] != ["resolve"]:
            self._answer(404, {})
        elif parts[1] == "gated":
            self._answer(403, {"X-Error-Code": "GatedRepo"})
        else:
            type(self).fetched.append(parts[-1])
            self._answer(200, {"ETag": f'"{parts[-1]}"', "X-Repo-Commit": COMMIT}, FILES[parts[-1]])

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    """A Hub that can be reached."""
    FakeHub.fetched = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    close_session()
    yield FakeHub
    server.shutdown()
    server.server_close()
    thread.join()
    close_session()


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against asking the Hub for `runs/final` while that folder is here."""
    (tmp_path / "org" / "name@v1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("org/name@v1", Path("org/name@v1"), str(tmp_path)):
        assert local_folder(name) == Path(name)


@pytest.mark.parametrize("name", ["org/open", "org/open@v1", f"org/open@{COMMIT}"])
def test_only_files_without_code_are_fetched(hub: type[FakeHub], name: str) -> None:
    folder = local_folder(name)
    harmless = {"config.json", "model.safetensors", "emu3.tiktoken", "emu3_vision_tokens.txt"}
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {n: FILES[n] for n in harmless}
    assert set(hub.fetched) == harmless


def test_a_caller_cannot_ask_for_code(hub: type[FakeHub]) -> None:
    """Guards the promise that neither remote code nor a pickle reaches the disk."""
    assert {file.name for file in local_folder("org/open", ["*"]).iterdir()} == {
        name for name in FILES if not name.endswith((".py", ".bin", ".pth"))
    }
    assert {file.name for file in local_folder("org/open@v1", ["*.json"]).iterdir()} >= {"config.json"}
    assert not set(hub.fetched) & {"modeling_emu3.py", "pytorch_model.bin", "training_args.bin", "rng_state_0.pth"}


def test_what_was_fetched_is_found_offline(hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch) -> None:
    online = local_folder("org/open@v1")
    hub.fetched.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert local_folder("org/open@v1") == online
    assert hub.fetched == []


def test_a_download_that_was_cut_off_is_not_taken_for_whole(
    hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch
) -> None:
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
def test_what_the_hub_refuses(hub: type[FakeHub], name: str, message: str) -> None:
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
