"""A Hugging Face Hub on the loopback with one public dataset, as far as downloading asks for it."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

REPOSITORY = "org/pairs"


class FakeHub:
    """commits: files by path, by the name of a branch. asked: the paths of the requests so far."""

    def __init__(self, commits: dict[str, dict[str, bytes]]) -> None:
        self.commits = {name: (hashlib.sha1(name.encode()).hexdigest(), files) for name, files in commits.items()}
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.asked.append(self.path)
                status, headers, body = hub.answer(unquote(urlsplit(self.path).path))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_GET = do_HEAD

            def log_message(self, *_: object) -> None:
                """Tests print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        for name, (commit, files) in self.commits.items():
            if path in (f"/api/datasets/{REPOSITORY}/revision/{name}", f"/api/datasets/{REPOSITORY}/revision/{commit}"):
                return 200, {}, json.dumps({"id": REPOSITORY, "sha": commit, "siblings": []}).encode()
            if path == f"/api/datasets/{REPOSITORY}/tree/{commit}":
                tree = [
                    {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for file, data in files.items()
                ]
                return 200, {}, json.dumps(tree).encode()
            prefix = f"/datasets/{REPOSITORY}/resolve/{commit}/"
            if path.startswith(prefix) and path.removeprefix(prefix) in files:
                data = files[path.removeprefix(prefix)]
                return 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit}, data
        code = "RevisionNotFound" if path.startswith(f"/api/datasets/{REPOSITORY}/revision/") else "RepoNotFound"
        return 404, {"X-Error-Code": code}, b"{}"

    def __enter__(self) -> Self:
        Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()
