"""Serve the page: `python -m emu3.demo --model M`, or `bash scripts/demo.sh` with the same options."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from tempfile import TemporaryDirectory
from typing import Any

from emu3.errors import UserError, run_main
from emu3.mllm.layout import THINK_TOKENS


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at `host`:`port`. Raises UserError if it is taken or not this machine's."""
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        why = (getattr(error, "strerror", None) or str(error)).partition(" (")[0]
        raise UserError(f"cannot listen at {host}:{port} ({why}); choose another --port or --host") from error


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m emu3.demo", description="A page that edits images.")
    parser.add_argument("--model", required=True, help="language model: checkpoint folder or Hub id")
    parser.add_argument(
        "--vision", help="vision tokenizer: folder or Hub id (default: the one that the model names or holds)"
    )
    parser.add_argument("--tokenizer", help="text tokenizer: folder or Hub id (default: the one inside the model)")
    parser.add_argument(
        "--image-area", type=int, help="pixels of an edit (default: what the model was trained at, else 65536)"
    )
    parser.add_argument(
        "--think-tokens",
        type=int,
        default=THINK_TOKENS,
        help="most tokens of a chain of thought (default: %(default)s)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="0 takes a free one (default: %(default)s)")
    arguments = parser.parse_args()

    if arguments.image_area is not None and arguments.image_area < 1:
        raise UserError(f"--image-area is {arguments.image_area}; it is 1 or more")
    if arguments.think_tokens < 1:
        raise UserError(f"--think-tokens is {arguments.think_tokens}; it is 1 or more")
    # Before the model is loaded, which takes minutes: a port in use is reported at once, an early visitor waits.
    # A server ends by this signal; as an exception it takes the uploads along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with (
        listen(arguments.host, arguments.port) as listener,
        TemporaryDirectory(prefix="emu3-demo-", dir=os.environ.get("GRADIO_TEMP_DIR")) as uploads,
    ):
        # Of its own, since whatever lies there can be asked for; gradio reads the variable when it is imported.
        os.environ["GRADIO_TEMP_DIR"] = uploads

        import gradio as gr
        import uvicorn
        from fastapi import FastAPI

        from emu3 import Editor
        from emu3.demo.page import CSS, THEME, build_page

        host, port = listener.getsockname()
        editor = Editor.from_pretrained(
            arguments.model, arguments.vision, arguments.tokenizer, image_area=arguments.image_area
        )
        editor.think_tokens = arguments.think_tokens
        page = build_page(editor, f"Model `{arguments.model}` on {editor.model.device}.")
        # FastAPI's own pages load scripts from another host.
        closed: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None}
        app = gr.mount_gradio_app(
            FastAPI(**closed),
            page,
            path="/",
            app_kwargs=closed,
            theme=THEME,
            css=CSS,
            footer_links=[],
            run_history=False,
            show_error=False,
            max_file_size="50mb",
        )
        print(f"open http://{host}:{port} in a browser; Ctrl-C ends it", flush=True)
        # A page that is open keeps a connection open: the end does not wait for it.
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    run_main(main)
