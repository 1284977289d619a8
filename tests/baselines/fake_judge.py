"""A judge that says what it is told, over real HTTP on a free loopback port."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeJudge:
    """OpenAI-compatible; `answers[instruction]` is its answer to an SC question, HTTP 400 where it is None.
    refuse: what every question is refused with. count_tokens: the usage that it reports, of a request's body."""

    def __init__(self) -> None:
        self.answers: dict[str, str | None] = {}
        self.name = "fake"
        self.refuse: str | None = None
        self.finish_reason = "stop"
        self.served: str | None = None
        self.count_tokens: Callable[[Any], Any] | None = None
        self.bodies: list[Any] = []
        self.questions = 0
        judge, counting = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, {"data": [{"id": judge.name}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with counting:
                    judge.questions += 1
                judge.bodies.append(body)
                text = body["messages"][0]["content"][0]["text"]
                told = [
                    judge.answers[name] for name in judge.answers if f"Editing instruction: {name}\n" in f"{text}\n"
                ]
                answer = told[0] if told else '{"score": [9, 9], "reasoning": ""}'
                if answer is None or judge.refuse:
                    self._send(400, {"error": {"message": judge.refuse or "not today"}})
                else:
                    choice = {"message": {"content": answer}, "finish_reason": judge.finish_reason}
                    more = {"model": judge.served} if judge.served else {}
                    if judge.count_tokens is not None:
                        more["usage"] = judge.count_tokens(body)
                    self._send(200, {"choices": [choice], **more})

            def _send(self, status: int, value: Any) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                """Keep the test's output clean."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
