"""A Hugging Face Hub on the loopback, as far as huggingface_hub and `datasets` ask it, which notes what it sent."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants

Files = Mapping[str, bytes] | Path
"""Contents by path, or a folder that has them."""


class FakeHub:
    """models, datasets: files by repository and branch.

    url: its address. asked: paths of the requests. fetched: names of the files sent. sent: bytes of bodies.
    authorizations: that header of each request, by the host it was sent to. Set `ranges` to False for a server that
    sends whole files, `gated` to repositories that it refuses, `elsewhere` to True for one that redirects weights to
    another host name.
    """

    def __init__(
        self,
        models: Mapping[str, Mapping[str, Files]] | None = None,
        datasets: Mapping[str, Mapping[str, Files]] | None = None,
    ) -> None:
        self.repositories = {
            f"{kind}/{name}": {branch: (commit_of(branch), files) for branch, files in branches.items()}
            for kind, repositories in (("models", models or {}), ("datasets", datasets or {}))
            for name, branches in repositories.items()
        }
        self.asked: list[str] = []
        self.fetched: list[str] = []
        self.sent = 0
        self.authorizations: list[tuple[str, str | None]] = []
        self.ranges, self.elsewhere = True, False
        self.gated: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_POST = do_GET

            def log_message(self, *_: object) -> None:
                """Tests print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def serve(self, model: str, folder: Path | None) -> None:
        """Serve a model from another folder, or not at all."""
        if folder is None:
            del self.repositories[f"models/{model}"]
        else:
            self.repositories[f"models/{model}"] = {"main": (commit_of("main"), folder)}

    def folder(self, model: str) -> Path:
        """The folder that a model is served from."""
        files = self.repositories[f"models/{model}"]["main"][1]
        assert isinstance(files, Path)
        return files

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"] or 0))
        path = unquote(urlsplit(request.path).path)
        host = request.headers["Host"].partition(":")[0]
        self.asked.append(path)
        self.authorizations.append((host, request.headers["Authorization"]))
        if found := re.fullmatch(
            r"/api/(models|datasets)/([\w.-]+/[\w.-]+)(?:/(revision|tree|paths-info)/?(.*))?", path
        ):
            kind, name, what, rest = found.groups()
            return self._listing(request, f"{kind}/{name}", what or "revision", rest or "main", body.decode())
        if found := re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/(.+)", path):
            return self._file(request, "datasets" if found[1] else "models", found[2], found[3], host)
        return self._end(request, 404, {})

    def _listing(self, request: BaseHTTPRequestHandler, repository: str, what: str, rest: str, body: str) -> None:
        branches = self.repositories.get(repository)
        if branches is None:
            return self._end(request, 404, {"X-Error-Code": "RepoNotFound"})
        found = _revision(branches, rest)
        if found is None:
            return self._end(request, 404, {"X-Error-Code": "RevisionNotFound"})
        commit, files, below = found
        contents = _contents(files)
        name = repository.partition("/")[2]
        if what == "revision":
            siblings = [{"rfilename": file} for file in contents]
            return self._json(request, {"id": name, "sha": commit, "siblings": siblings, "private": False})
        if what == "paths-info":
            paths = parse_qs(body).get("paths") or json.loads(body or "{}").get("paths", [])
            return self._json(request, [_entry(path, contents) for path in paths if _entry(path, contents)])
        inside = [file for file in contents if not below or file.startswith(f"{below}/")]
        if "recursive=true" not in request.path.lower():
            start = len(below) + 1 if below else 0
            inside = list(dict.fromkeys(file[:start] + file[start:].partition("/")[0] for file in inside))
        else:
            folders = {file.rpartition("/")[0] for file in inside} - {""}
            inside = [*sorted(folders), *inside]
        return self._json(request, [_entry(path, contents) for path in inside])

    def _file(self, request: BaseHTTPRequestHandler, kind: str, name: str, rest: str, host: str) -> None:
        branches = self.repositories.get(f"{kind}/{name}")
        if branches is None:
            return self._end(request, 401, {"X-Error-Code": "RepoNotFound"})
        if name in self.gated:
            return self._end(request, 403, {"X-Error-Code": "GatedRepo"})
        found = _revision(branches, rest)
        if found is None:
            return self._end(request, 404, {"X-Error-Code": "RevisionNotFound"})
        commit, files, file = found
        content = _contents(files, file).get(file)
        if content is None:
            return self._end(request, 404, {"X-Error-Code": "EntryNotFound"})
        if self.elsewhere and file.endswith(".safetensors") and host == "127.0.0.1":
            return self._end(request, 302, {"Location": f"http://localhost:{self.port}{request.path}"})
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if request.command == "GET":
            self.fetched.append(file)
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers["Range"] or "")
        if span is None or not self.ranges:
            return self._end(request, 200, headers, content)
        start, last = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
        return self._end(
            request,
            206,
            {**headers, "Content-Range": f"bytes {start}-{last}/{len(content)}"},
            content[start : last + 1],
        )

    def _json(self, request: BaseHTTPRequestHandler, value: object) -> None:
        self._end(request, 200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _end(self, request: BaseHTTPRequestHandler, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "HEAD":
            return
        # In parts, so that somebody who hangs up at once is not counted as having got it all.
        try:
            for start in range(0, len(body), 2**16):
                request.wfile.write(body[start : start + 2**16])
                self.sent += len(body[start : start + 2**16])
        except ConnectionError:
            request.close_connection = True

    def __enter__(self) -> Self:
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def commit_of(branch: str) -> str:
    """The commit that a branch is at."""
    return hashlib.sha1(branch.encode()).hexdigest()


def use(monkeypatch: pytest.MonkeyPatch, hub: FakeHub, cache: Path) -> Callable[[], None]:
    """Have huggingface_hub and `datasets` in this process ask `hub`, with `cache` as their cache; returns what to call
    at the end."""
    import datasets

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    close_session()
    return close_session


def _revision(branches: Mapping[str, tuple[str, Files]], rest: str) -> tuple[str, Files, str] | None:
    """The commit and files that `rest` begins with the name of, and what follows it."""
    for branch, (commit, files) in branches.items():
        for name in (branch, commit):
            if rest == name or rest.startswith(f"{name}/"):
                return commit, files, rest[len(name) + 1 :]
    return None


def _contents(files: Files, only: str | None = None) -> dict[str, bytes]:
    if not isinstance(files, Path):
        return dict(files)
    if only is not None:
        return {only: (files / only).read_bytes()} if (files / only).is_file() else {}
    return {
        path.relative_to(files).as_posix(): path.read_bytes() for path in sorted(files.rglob("*")) if path.is_file()
    }


def _entry(path: str, contents: Mapping[str, bytes]) -> dict[str, object] | None:
    if path in contents:
        oid = hashlib.sha1(contents[path]).hexdigest()
        return {"type": "file", "path": path, "size": len(contents[path]), "oid": oid}
    if any(file.startswith(f"{path}/") for file in contents):
        return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
    return None
