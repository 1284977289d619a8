"""Where the uploads lie stays the server's own: a name stands for their folder in all that goes to a visitor.

Gradio calls a file by its absolute path, in its replies and in the addresses of images. The real folder is put back
into what a visitor sends, so nothing else on the disk gets a name.
"""

from __future__ import annotations

from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

NAME = "/emu3-demo-uploads"
_TEXTS = ("application/json", "text/html", "text/event-stream", "text/plain")
_WHOLE = 2**24
"""Bytes of a request's body that may name a file; an upload is none and may be larger."""


class HiddenFolder:
    """ASGI middleware that writes `NAME` for `folder` in texts on their way out, and `folder` for `NAME` on their way
    in."""

    def __init__(self, app: ASGIApp, folder: str | Path) -> None:
        self.app = app
        self.folder = str(folder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].replace(NAME, self.folder)
        # Compressed texts could not be read here; scripts and styles, which name nothing, stay compressed.
        hidden = {b"accept-encoding"} if "/assets/" not in path else set()
        headers = [(name, value) for name, value in scope["headers"] if name not in hidden]
        scope = {**scope, "path": path, "raw_path": path.encode(), "headers": headers}
        json = Headers(scope=scope).get("content-type", "").startswith("application/json")
        await self.app(scope, self._whole(receive) if json else receive, self._hiding(send))

    def _whole(self, receive: Receive) -> Receive:
        """A body in one message, since a name may lie across two."""
        given = False

        async def once() -> Message:
            nonlocal given
            if given:
                return await receive()
            body = b""
            while len(body) < _WHOLE:
                message = await receive()
                if message["type"] != "http.request":
                    return message
                body += message.get("body", b"")
                if not message.get("more_body"):
                    break
            given = True
            return {"type": "http.request", "body": body.replace(NAME.encode(), self.folder.encode())}

        return once

    def _hiding(self, send: Send) -> Send:
        start: Message | None = None
        kind, held = "", b""

        async def hide(message: Message) -> None:
            nonlocal start, kind, held
            if message["type"] == "http.response.start":
                kind = Headers(raw=message["headers"]).get("content-type", "").partition(";")[0]
                if kind in _TEXTS:
                    start = message
                    del MutableHeaders(raw=message["headers"])["content-length"]
                    return
            elif message["type"] == "http.response.body" and start is not None:
                held += message.get("body", b"")
                if kind != "text/event-stream" and message.get("more_body"):
                    return
                if not start.get("sent"):
                    await send({name: value for name, value in start.items() if name != "sent"})
                    start["sent"] = True
                message = {**message, "body": held.replace(self.folder.encode(), NAME.encode())}
                held = b""
            await send(message)

        return hide
