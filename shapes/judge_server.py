"""The verifier behind the OpenAI protocol, so that a reward takes the path that a vLLM endpoint would get.

    python -m shapes.judge_server --port 4877
    python -m shapes.judge_server --any-picture      pixel statistics, no judgement: to try the path on photographs

Answers /v1/models and /v1/chat/completions. A question with two pictures is about the edit (source, edited) and holds
the line `Editing instruction: ...`; one with a single picture is about its quality. Anything else is a 400, as it
would be from a real server, and so is an instruction from outside the embedded world, whose sample then counts as not
judged. With `--any-picture` another grader takes over (`shapes.any_picture`); it has a name of its own, so its scores
cannot pass for the verifier's in a cache, a table or a report. Sampling settings are accepted and do not matter:
these judges are deterministic.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from aiohttp import web
from PIL import Image

from emu3.errors import UserError, run_main
from emu3.files import whole_file
from shapes.any_picture import mark_edit, mark_quality
from shapes.verifier import Marks, judge_edit, judge_quality

LARGEST_REQUEST = 64 * 2**20  # bytes
_INSTRUCTION = re.compile(r"^Editing instruction: (.+)$", re.MULTILINE)


class BadQuestion(ValueError):
    """A request that this judge cannot answer."""


@dataclass(frozen=True)
class Grader:
    """Who answers: `edit` marks (instruction, source, edited) or raises ValueError, `quality` a picture alone."""

    model: str
    edit: Callable[[str, Image.Image, Image.Image], Marks]
    quality: Callable[[Image.Image], Marks]


VERIFIER = Grader("shapes-verifier", judge_edit, judge_quality)
ANY_PICTURE = Grader("pixel-statistics-no-judgement", mark_edit, mark_quality)
_GRADER = web.AppKey("grader", Grader)


def answer(grader: Grader, messages: list[dict[str, Any]]) -> str:
    """The grader's answer to a chat: a JSON object with "reasoning" and "score". Raises BadQuestion."""
    text, pictures = _contents(messages)
    if len(pictures) == 1:
        marks = grader.quality(pictures[0])
    elif len(pictures) == 2:
        marks = _edit_marks(grader, text, *pictures)
    else:
        raise BadQuestion(f"expected one or two pictures, got {len(pictures)}")
    return json.dumps({"reasoning": marks.reason, "score": [marks.first, marks.second]})


def _edit_marks(grader: Grader, text: str, source: Image.Image, edited: Image.Image) -> Marks:
    found = _INSTRUCTION.search(text)
    if found is None:
        raise BadQuestion("the question has no line 'Editing instruction: ...'")
    try:
        return grader.edit(found[1], source, edited)
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
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadQuestion(f"unreadable picture: {error}") from None


async def _models(request: web.Request) -> web.Response:
    model = {"id": request.app[_GRADER].model, "object": "model", "owned_by": "shapes"}
    return web.json_response({"object": "list", "data": [model]})


async def _chat(request: web.Request) -> web.Response:
    grader = request.app[_GRADER]
    try:
        question = await request.json()
        text = answer(grader, question["messages"])
    except (BadQuestion, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        message = str(error) if isinstance(error, BadQuestion) else f"malformed request: {error!r}"
        return web.json_response({"error": {"message": message, "type": "invalid_request_error"}}, status=400)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    return web.json_response(
        {
            "id": "chatcmpl-shapes",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": grader.model,
            "choices": [choice],
            "usage": usage,
        }
    )


def application(grader: Grader) -> web.Application:
    app = web.Application(client_max_size=LARGEST_REQUEST)
    app[_GRADER] = grader
    app.add_routes([web.get("/v1/models", _models), web.post("/v1/chat/completions", _chat)])
    return app


async def serve(grader: Grader, host: str, port: int, address_file: Path | None) -> None:
    """Serve until cancelled. The base URL is printed and, if asked for, written to a file once requests are taken."""
    runner = web.AppRunner(application(grader), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise UserError(f"cannot listen on {host}:{port}: {error.strerror}") from None
        url = f"http://{host}:{runner.addresses[0][1]}/v1"
        print(f"judge: {grader.model} at {url}", flush=True)
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
    parser.add_argument(
        "--any-picture",
        action="store_true",
        help="mark any picture by pixel statistics, which is no judgement of the edit",
    )
    options = parser.parse_args()
    grader = ANY_PICTURE if options.any_picture else VERIFIER
    asyncio.run(serve(grader, options.host, options.port, options.port_file))


if __name__ == "__main__":
    run_main(main)
