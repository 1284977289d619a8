"""A judge that writes its replies byte by byte, for what a web framework would not do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

GOOD = json.dumps({"choices": [{"message": {"content": json.dumps({"reasoning": "so", "score": [9, 4]})}}]})
HEAD = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"

RawReply = Callable[[asyncio.StreamWriter], Awaitable[None]]


class RawJudge:
    """A server that writes its replies byte by byte, for what aiohttp would not do; the models are in order."""

    def __init__(self, stub: Any) -> None:
        self.reply: RawReply = cut(b"200 OK")
        self.asked = 0
        self._stub = stub
        self.url = asyncio.run_coroutine_threadsafe(self._start(), stub.loop).result(300)

    async def _start(self) -> str:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            await whole(json.dumps({"data": [{"id": "stub"}]}))(writer)
        else:
            self.asked += 1
            await self.reply(writer)
        writer.close()


def whole(text: str) -> RawReply:
    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % (b"200 OK", len(text)) + text.encode())
        await writer.drain()

    return reply


def cut(status: bytes) -> RawReply:
    """Half of a body, and then the connection is reset."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % (status, len(GOOD)) + GOOD[:20].encode())
        await writer.drain()
        writer.transport.abort()

    return reply


async def trickle(writer: asyncio.StreamWriter) -> None:
    """A byte now and then, which keeps every timeout between two bytes from ending it."""
    writer.write(HEAD % (b"200 OK", 10**6))
    for _ in range(600):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)
