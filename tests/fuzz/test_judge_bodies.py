"""What a server sends: whatever the bytes are, an ask ends with a text or with the reason why there is none."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from socketserver import StreamRequestHandler, ThreadingTCPServer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import broken_json, damaged

from rl.reward.client import Judge
from rl.reward.config import JudgeConfig
from rl.reward.scores import Unavailable, Unparsable

BODY = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "stub",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "[7, 8]"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14},
}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
MODELS = json.dumps({"object": "list", "data": [{"id": "stub", "object": "model"}]}).encode()


def answer(body: bytes) -> bytes:
    return HEAD % len(body) + body


class Server(ThreadingTCPServer):
    """Sends `reply`, byte by byte as it is, to whatever is posted."""

    allow_reuse_address = True
    daemon_threads = True
    reply = b""

    def handle_error(self, *_: object) -> None:
        """Whoever has read enough hangs up."""


class Handler(StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        line = self.rfile.readline()
        length = 0
        while (header := self.rfile.readline().strip()) != b"":
            if header.lower().startswith(b"content-length:"):
                length = int(header.split(b":")[1])
        self.rfile.read(length)
        self.wfile.write(answer(MODELS) if line.startswith(b"GET") else self.server.reply)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@settings(max_examples=30)
@given(broken_json(BODY).map(answer) | damaged(answer(json.dumps(BODY).encode())) | st.binary(max_size=60))
def test_an_ask_ends_with_a_text_or_a_reason(server: Server, reply: bytes) -> None:
    """Guards: an exception below the ask, which would end a run for one server's bad byte."""
    server.reply = reply

    async def ask() -> object:
        judge = Judge(JudgeConfig(f"http://127.0.0.1:{server.server_address[1]}/v1", attempts=1, deadline=5))
        try:
            return await judge.ask("how good is it?", [])
        finally:
            await judge.aclose()

    outcome = asyncio.run(ask())
    assert isinstance(outcome, str | Unavailable | Unparsable)
    if isinstance(outcome, Unavailable):
        assert "\n" not in outcome.reason
    json.dumps(outcome if isinstance(outcome, str) else vars(outcome), ensure_ascii=False).encode()
