"""Serve the page: `python -m emu3.demo --model M`, or `bash scripts/demo.sh` with the same options."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from emu3.checkpoint_facts import short_name
from emu3.edit import add_model_flags, load_editor
from emu3.errors import UserError, run_main
from emu3.flags import CommandParser

if TYPE_CHECKING:
    import gradio as gr
    from starlette.types import ASGIApp


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at `host`:`port`. Raises UserError if it is taken or not this machine's."""
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        why = (getattr(error, "strerror", None) or str(error)).partition(" (")[0]
        raise UserError(f"cannot listen at {host}:{port} ({why}); choose another --port or --host") from error


def application(page: gr.Blocks, uploads: Path | str) -> ASGIApp:
    """What serves the page. uploads: the folder of its files, which `GRADIO_TEMP_DIR` names; no visitor sees where it
    is."""
    import gradio as gr
    from fastapi import FastAPI

    from emu3.demo.hidden_folder import HiddenFolder
    from emu3.demo.page import CSS, HEAD, THEME

    # FastAPI's own pages load scripts from another host.
    closed: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    app = gr.mount_gradio_app(
        FastAPI(**closed),
        page,
        path="/",
        app_kwargs=closed,
        theme=THEME,
        css=CSS,
        head=HEAD,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size="50mb",
    )
    return HiddenFolder(app, uploads)


def share(host: str, port: int) -> str:
    """A public address of what listens at `host`:`port` here, while this process lives. Raises UserError if there is
    none to be had."""
    from gradio.networking import setup_tunnel

    try:
        here = "127.0.0.1" if host == "0.0.0.0" else host  # the former is every address
        return setup_tunnel(here, port, secrets.token_urlsafe(32), None, None)
    except Exception as error:  # whatever a network, a download and another program may come to
        raise UserError(f"no public address ({str(error).splitlines()[0]}): leave --share out") from error


def main() -> None:
    parser = CommandParser(prog="python -m emu3.demo", description="A page that edits images.")
    add_model_flags(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument(
        "--port",
        type=int,
        default=7860,
        help="0 takes a free one (default: %(default)s)",
    )
    parser.add_argument(
        "--share",
        action="store_true",
        help="also at a public address for a week, through gradio's servers (default: no)",
    )
    arguments = parser.parse_args()

    if arguments.image_area is not None and arguments.image_area < 1:
        raise UserError(f"--image-area is {arguments.image_area}; it is 1 or more")
    # Before the model is loaded, which takes minutes: a port in use is reported at once, an early visitor waits.
    # A server ends by this signal; as an exception it takes the uploads along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with (
        listen(arguments.host, arguments.port) as listener,
        TemporaryDirectory(prefix="emu3-demo-", dir=os.environ.get("GRADIO_TEMP_DIR")) as uploads,
    ):
        # Of its own, since whatever lies there can be asked for; gradio reads the variable when it is imported.
        os.environ["GRADIO_TEMP_DIR"] = uploads

        import uvicorn

        from emu3.demo.page import build_page

        host, port = listener.getsockname()
        editor = load_editor(arguments)
        page = build_page(editor, f"Model `{short_name(arguments.model)}` on {editor.model.device}.")
        print(f"open http://{host}:{port} in a browser; Ctrl-C ends it", flush=True)
        if arguments.share:
            print(f"anyone who is given {share(host, port)} can edit images here", flush=True)
        # A page that is open keeps a connection open: the end does not wait for it.
        config = uvicorn.Config(application(page, uploads), log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    run_main(main)
