"""The verifier behind the OpenAI protocol, so that a reward takes the path that a vLLM endpoint would get.

    python -m shapes.judge_server --port 4877
    python -m shapes.judge_server --any-image        pixel statistics, no judgement: to try the path on photographs
    python -m shapes.judge_server --coarse 3 --noise 2 --bias 5    a weak judge in the verifier's place

Answers /v1/models and /v1/chat/completions; `shapes.judges` says which questions it knows. Anything else is a 400, as
it would be from a real server, and so is an instruction from outside the embedded world, whose sample then counts as
not judged. With `--any-image` another judge takes over (`shapes.any_image`). It has a name of its own, and so has each
weak judge (`shapes.judges.weakened`): their scores cannot pass for the verifier's in a cache, a table or a report. Of
the sampling settings only `logprobs` matters: these judges are deterministic.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from aiohttp import web

from emu3.errors import UserError, run_main
from emu3.files import whole_file
from emu3.flags import CommandParser
from emu3.settings import number_in
from shapes.judges import ANY_IMAGE, VERIFIER, BadQuestion, WorldJudge, choice, weakened

LARGEST_REQUEST = 64 * 2**20  # bytes
_JUDGE = web.AppKey("judge", WorldJudge)


async def _models(request: web.Request) -> web.Response:
    model = {"id": request.app[_JUDGE].model, "object": "model", "owned_by": "shapes"}
    return web.json_response({"object": "list", "data": [model]})


async def _chat(request: web.Request) -> web.Response:
    judge = request.app[_JUDGE]
    try:
        question = await request.json()
        chosen = choice(judge, question)
    except (BadQuestion, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        message = str(error) if isinstance(error, BadQuestion) else f"malformed request: {error!r}"
        return web.json_response({"error": {"message": message, "type": "invalid_request_error"}}, status=400)
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    return web.json_response(
        {
            "id": "chatcmpl-shapes",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": judge.model,
            "choices": [chosen],
            "usage": usage,
        }
    )


def application(judge: WorldJudge) -> web.Application:
    app = web.Application(client_max_size=LARGEST_REQUEST)
    app[_JUDGE] = judge
    app.add_routes([web.get("/v1/models", _models), web.post("/v1/chat/completions", _chat)])
    return app


async def serve(judge: WorldJudge, host: str, port: int, address_file: Path | None) -> None:
    """Serve until cancelled. The base URL is printed and, if asked for, written to a file once requests are taken."""
    runner = web.AppRunner(application(judge), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise UserError(f"cannot listen on {host}:{port}: {error.strerror}") from None
        url = f"http://{host}:{runner.addresses[0][1]}/v1"
        print(f"judge: {judge.model} at {url}", flush=True)
        if address_file is not None:
            with whole_file(address_file) as temporary:
                temporary.write_text(url + "\n")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback only)")
    parser.add_argument(
        "--port", type=number_in(int, least=0, most=65535), default=4877, help="0 takes a free one (default 4877)"
    )
    parser.add_argument("--port-file", type=Path, help="file that gets the base URL once the server listens")
    parser.add_argument(
        "--any-image",
        "--any-picture",  # its former name
        action="store_true",
        help="score any image by pixel statistics, which is no judgement of the edit",
    )
    parser.add_argument("--coarse", type=number_in(int, least=2, most=11), help="round scores to so many levels")
    parser.add_argument(
        "--noise",
        type=number_in(float, least=0, most=10),
        default=0.0,
        help="standard deviation of normal noise on each score, in points; the same for the same question (default 0)",
    )
    parser.add_argument(
        "--bias",
        type=number_in(float, least=0, most=10),
        default=0.0,
        help="edit success, in points, of an image in which nothing was changed (default 0)",
    )
    options = parser.parse_args()
    weak = weakened(VERIFIER, options.coarse, options.noise, options.bias)
    if options.any_image and weak is not VERIFIER:
        raise UserError("--any-image and --coarse, --noise or --bias: only the verifier can be made weaker")
    judge = ANY_IMAGE if options.any_image else weak
    asyncio.run(serve(judge, options.host, options.port, options.port_file))


if __name__ == "__main__":
    run_main(main)
