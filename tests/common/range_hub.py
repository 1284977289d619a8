"""A Hub on the loopback that serves folders as repositories, by range requests too, and notes what it sent."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class RangeHub:
    """folders: by repository. url: its address. sent: bytes of bodies. authorizations: the header of each request, by
    the host it was sent to. Set `ranges` to False for a server that sends whole files, `gated` to repositories that it
    refuses, `elsewhere` to True for one that redirects weights to another host name."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = dict(folders)
        self.sent = 0
        self.asked: list[str] = []
        self.authorizations: list[tuple[str, str | None]] = []
        self.ranges, self.elsewhere = True, False
        self.gated: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None:
                """Tests print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = urlsplit(request.path).path
        host = request.headers["Host"].partition(":")[0]
        self.asked.append(path)
        self.authorizations.append((host, request.headers["Authorization"]))
        found = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/([\w.-]+)", path)
        if found is None or found[1] not in self.folders:
            return self.end(request, 401, {"X-Error-Code": "RepoNotFound"})
        repository, _, name = found.groups()
        if repository in self.gated:
            return self.end(request, 401, {"X-Error-Code": "GatedRepo"})
        file = self.folders[repository] / name
        if not file.is_file():
            return self.end(request, 404, {"X-Error-Code": "EntryNotFound"})
        if self.elsewhere and name.endswith(".safetensors") and host == "127.0.0.1":
            return self.end(request, 302, {"Location": f"http://localhost:{self.port}{path}"})
        content = file.read_bytes()
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers["Range"] or "")
        if span is None or not self.ranges:
            return self.end(request, 200, {}, content)
        start, last = int(span[1]), min(int(span[2]), len(content) - 1)
        return self.end(
            request, 206, {"Content-Range": f"bytes {start}-{last}/{len(content)}"}, content[start : last + 1]
        )

    def end(self, request: BaseHTTPRequestHandler, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
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
