"""An OpenAI server that replies by the instruction, over real HTTP on a free loopback port."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

CHAIN = "1. A thing.\n2. The thing.\n3. [{left}, 0, {right}, {bottom}]\n4. It changes.\n5. Another thing."


class StubAnnotator:
    """`replies[instruction]` is its reply, a chain with a box over the right half of what it was sent where there is
    none, HTTP 400 for None and 503 for "away". `asked` counts the questions by instruction, `sizes` are those of the
    images that came with the last one."""

    def __init__(self) -> None:
        self.replies: dict[str, str | None] = {}
        self.asked: Counter[str] = Counter()
        self.sizes: list[tuple[int, int]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, {"data": [{"id": "stub"}]})

            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
                instruction = content[0]["text"].split("Editing instruction: ")[1].split("\n")[0]
                stub.asked[instruction] += 1
                urls = [part["image_url"]["url"] for part in content[1:]]
                stub.sizes = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size for url in urls]
                width, height = stub.sizes[0]
                chain = CHAIN.format(left=width // 2, right=width, bottom=height)
                reply = stub.replies.get(instruction, chain)
                if reply is None or reply == "away":
                    self._send(503 if reply else 400, {"error": {"message": "not today"}})
                else:
                    self._send(200, {"choices": [{"message": {"content": reply}}]})

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
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
