"""The verifier behind the OpenAI protocol, so that a reward takes the path that a vLLM endpoint would get.

    python -m shapes.judge_server --port 4877

Answers /v1/models and /v1/chat/completions. A question with two pictures is about the edit (source, edited) and holds
the line `Editing instruction: ...`; one with a single picture is about its quality. Anything else is a 400, as it
would be from a real server. Sampling settings are accepted and do not matter: this judge is deterministic.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import io
import json
import re
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from aiohttp import web
from PIL import Image, UnidentifiedImageError

from emu3.errors import UserError, run_main
from emu3.files import whole_file
from shapes.verifier import Marks, judge_edit, judge_quality

MODEL = "shapes-verifier"
LARGEST_REQUEST = 64 * 2**20  # bytes
_INSTRUCTION = re.compile(r"^Editing instruction: (.+)$", re.MULTILINE)


class BadQuestion(ValueError):
    """A request that this judge cannot answer."""


def answer(messages: list[dict[str, Any]]) -> str:
    """The judge's answer to a chat: a JSON object with "reasoning" and "score". Raises BadQuestion."""
    text, pictures = _contents(messages)
    if len(pictures) == 1:
        marks = judge_quality(pictures[0])
    elif len(pictures) == 2:
        marks = _edit_marks(text, *pictures)
    else:
        raise BadQuestion(f"expected one or two pictures, got {len(pictures)}")
    return json.dumps({"reasoning": marks.reason, "score": [marks.first, marks.second]})


def _edit_marks(text: str, source: Image.Image, edited: Image.Image) -> Marks:
    found = _INSTRUCTION.search(text)
    if found is None:
        raise BadQuestion("the question has no line 'Editing instruction: ...'")
    try:
        return judge_edit(found[1], source, edited)
    except ValueError as error:
        raise BadQuestion(str(error)) from None


def _contents(messages: list[dict[str, Any]]) -> tuple[str, list[Image.Image]]:
    texts: list[str] = []
    pictures: list[Image.Image] = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            texts.append(content)
            continue
        for part in content:
            if part["type"] == "text":
                texts.append(part["text"])
            elif part["type"] == "image_url":
                pictures.append(_picture(part["image_url"]["url"]))
    return "\n".join(texts), pictures


@lru_cache(maxsize=256)
def _picture(url: str) -> Image.Image:
    """The picture in a data URL; the source of a group of rollouts is decoded once."""
    head, _, data = url.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        raise BadQuestion("pictures must be base64 data URLs")
    try:
        return Image.open(io.BytesIO(base64.b64decode(data, validate=True))).convert("RGB")
    except (binascii.Error, UnidentifiedImageError, OSError) as error:
        raise BadQuestion(f"unreadable picture: {error}") from None


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "shapes"}]})


async def _chat(request: web.Request) -> web.Response:
    try:
        question = await request.json()
        text = answer(question["messages"])
    except (BadQuestion, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        message = str(error) if isinstance(error, BadQuestion) else f"malformed request: {error!r}"
        return web.json_response({"error": {"message": message, "type": "invalid_request_error"}}, status=400)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    return web.json_response(
        {
            "id": "chatcmpl-shapes",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": MODEL,
            "choices": [choice],
            "usage": usage,
        }
    )


def application() -> web.Application:
    app = web.Application(client_max_size=LARGEST_REQUEST)
    app.add_routes([web.get("/v1/models", _models), web.post("/v1/chat/completions", _chat)])
    return app


async def serve(host: str, port: int, address_file: Path | None) -> None:
    """Serve until cancelled. The base URL is printed and, if asked for, written to a file once requests are taken."""
    runner = web.AppRunner(application(), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise UserError(f"cannot listen on {host}:{port}: {error.strerror}") from None
        url = f"http://{host}:{runner.addresses[0][1]}/v1"
        print(f"judge: {MODEL} at {url}", flush=True)
        if address_file is not None:
            with whole_file(address_file) as temporary:
                temporary.write_text(url + "\n")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback only)")
    parser.add_argument("--port", type=int, default=4877, help="0 takes a free one (default 4877)")
    parser.add_argument("--port-file", type=Path, help="file that gets the base URL once the server listens")
    options = parser.parse_args()
    asyncio.run(serve(options.host, options.port, options.port_file))


if __name__ == "__main__":
    run_main(main)
