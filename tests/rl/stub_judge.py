"""A judge server for tests: real HTTP on a free loopback port, in a thread that ends with the test."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from rl.reward.client import Judge

Reply = Callable[[dict[str, Any]], Awaitable[web.StreamResponse]]


class StubJudge:
    """Answers chat requests with `reply(body)`, after `before_models()` those for its models; notes each body, its key
    and its time of arrival. port: a free one, or that of a server that ended, to stand up again."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.before_models: Callable[[], Awaitable[None]] = at_once
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: list[str | None] = []
        self.models = ["stub"]
        self.most_at_once = 0
        self.reply: Reply = answers(json.dumps({"reasoning": "as asked", "score": [9, 4]}))
        self._at_once = 0
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(300)

    def close(self) -> None:
        """Gone, as after a crash: connections that are open are cut."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(300)
            assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/v1/models", self._list)
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        self.port = runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _list(self, request: web.Request) -> web.Response:
        await self.before_models()
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.times.append(time.monotonic())
        self.keys.append(request.headers.get("Authorization"))
        body = await request.json()
        self.bodies.append(body)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return await self.reply(body)
        finally:
            self._at_once -= 1


async def at_once() -> None:
    pass


def answers(*texts: str | None) -> Reply:
    """A reply that says the texts one after the other, then the last for ever."""
    left = list(texts)

    async def reply(body: dict[str, Any]) -> web.StreamResponse:
        text = left.pop(0) if len(left) > 1 else left[0]
        message = {"role": "assistant", "content": text}
        return web.json_response({"object": "chat.completion", "choices": [{"index": 0, "message": message}]})

    return reply


def with_judge(judge: Judge, use: Callable[[Judge], Awaitable[Any]]) -> Any:
    """What `use` gives, in an event loop of its own, at whose end the judge is closed."""

    async def run() -> Any:
        try:
            return await use(judge)
        finally:
            await judge.aclose()

    return asyncio.run(run())
