"""The world's judge server in a thread of the test."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from shapes.judge_server import WorldJudge, serve


class Served:
    """A judge server in a thread. `url` is what it wrote to its address file."""

    def __init__(self, judge: WorldJudge, address_file: Path) -> None:
        self.address_file = address_file
        self._judge = judge
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 300
        while not address_file.exists():
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        self.url = address_file.read_text().strip()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.ensure_future(serve(self._judge, "127.0.0.1", 0, self.address_file))
        await asyncio.wait([self._task])

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(300)
        assert not self._thread.is_alive()

    def post(self, body: bytes) -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(f"{self.url}/chat/completions", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
