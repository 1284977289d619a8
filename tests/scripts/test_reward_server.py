"""scripts/reward_server.sh around a stand-in for vLLM: what it is started with, and when the address may be read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 300  # seconds until a test gives up; a busy machine needs many, an idle one none of them
STAND_IN = """import json, os, signal, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if os.path.exists(os.environ["LOADED"]) else 503)
        self.end_headers()

    def log_message(self, *_):
        pass

with open(os.environ["CALLED"], "w") as file:
    json.dump([os.getpid(), *sys.argv[1:]], file)
if "FAILS" in os.environ:
    sys.exit("no such model")
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""

Start = Callable[..., subprocess.Popen[str]]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Runs the script, in a checkout without .venv, with a command `vllm` of ours. `tmp_path` gets `address`, `called`
    and, from a test, `loaded`."""
    shutil.copytree(ROOT / "scripts", tmp_path / "checkout" / "scripts")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python").symlink_to(sys.executable)
    (programs / "vllm").write_text(f"#!{sys.executable}\n{STAND_IN}")
    (programs / "vllm").chmod(0o755)
    running: list[subprocess.Popen[str]] = []

    def run(*arguments: str, **variables: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "PATH": f"{programs}:/usr/bin:/bin",
            "LOADED": str(tmp_path / "loaded"),
            "CALLED": str(tmp_path / "called"),
            "ADDRESS_FILE": str(tmp_path / "address"),
            "PORT": str(free_port()),
            "POLL_SECONDS": "0.1",
            **variables,
        }
        command = ["bash", str(tmp_path / "checkout" / "scripts" / "reward_server.sh"), *arguments]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
        running.append(process)
        return process

    yield run
    for process in running:
        process.terminate()
        process.wait(PATIENCE)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def called(folder: Path) -> list[str]:
    until(lambda: (folder / "called").exists() and bool((folder / "called").read_text()))
    pid, *arguments = json.loads((folder / "called").read_text())
    return [str(pid), *arguments]


def is_running(pid: str) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_the_address_is_there_while_the_server_answers(start: Start, tmp_path: Path) -> None:
    """Guards: trainers that read an address before the model is loaded, or after it is gone; a server that goes on when
    the script is stopped, and holds its GPUs."""
    (tmp_path / "address").write_text("http://yesterday:4877/v1\n")
    port = free_port()
    process = start(PORT=str(port))
    pid, *_ = called(tmp_path)
    assert not (tmp_path / "address").exists()
    (tmp_path / "loaded").touch()
    until((tmp_path / "address").exists)
    assert (tmp_path / "address").read_text() == f"http://127.0.0.1:{port}/v1\n"
    assert is_running(pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 143
    assert not (tmp_path / "address").exists() and not is_running(pid)


def test_the_address_goes_when_the_whole_group_is_ended(start: Start, tmp_path: Path) -> None:
    """Guards what `timeout` and Slurm do: a signal to the script and more of them to the group, so that the commands of
    its end were ended too, and an address stayed at which nobody answers."""
    (tmp_path / "loaded").touch()
    process = start()
    until((tmp_path / "address").exists)
    process.send_signal(signal.SIGTERM)
    for _ in range(50):
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.001)
    assert process.wait(PATIENCE) == 143
    assert not (tmp_path / "address").exists()


def test_published_limits_and_ours_last(start: Start, tmp_path: Path) -> None:
    """Guards: a server that cuts the question off, refuses the second image, or is open to the network unasked."""
    start("--dtype", "float32", MODEL="some/model", TP="2")
    _, command, model, *arguments = called(tmp_path)
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert (command, model, options["--tensor-parallel-size"]) == ("serve", "some/model", "2")
    assert (options["--max-model-len"], options["--max-num-seqs"]) == ("4096", "1024")
    assert json.loads(options["--limit-mm-per-prompt"])["image"] == 2
    assert options["--host"] == "127.0.0.1"
    assert arguments[-2:] == ["--dtype", "float32"] and "--trust-remote-code" not in arguments


def test_other_machines_get_a_name_that_they_can_ask(start: Start, tmp_path: Path) -> None:
    """Guards: 0.0.0.0 as an address, which for a trainer is its own machine."""
    (tmp_path / "loaded").touch()
    start(HOST="0.0.0.0", PORT=str(port := free_port()))
    until((tmp_path / "address").exists)
    assert (tmp_path / "address").read_text() == f"http://{socket.gethostname()}:{port}/v1\n"


def test_a_server_that_fails_ends_the_script(start: Start, tmp_path: Path) -> None:
    """Guards: an hour of waiting for a process that is gone."""
    process = start(FAILS="1")
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and "error: the server ended before it answered" in errors
    assert not (tmp_path / "address").exists()


def test_a_server_that_never_answers_is_stopped(start: Start, tmp_path: Path) -> None:
    """The stand-in is a shell, which has noted its process long before the second is over, on a busy machine too."""
    (tmp_path / "bin" / "vllm").write_text('#!/bin/sh\necho "[$$]" > "$CALLED"\nexec sleep 600\n')
    process = start(STARTUP_SECONDS="1")
    pid, *_ = called(tmp_path)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and "(STARTUP_SECONDS)" in errors
    assert not is_running(pid)


def test_a_port_that_answers_is_not_taken_for_ours(start: Start, tmp_path: Path) -> None:
    """Guards: the address of somebody else's model, while our own fails to get the port."""
    (tmp_path / "loaded").touch()
    first = start(PORT=str(port := free_port()))
    until((tmp_path / "address").exists)
    second = start(PORT=str(port), ADDRESS_FILE=str(tmp_path / "second"))
    _, errors = second.communicate(timeout=PATIENCE)
    assert second.returncode == 2 and "choose another PORT" in errors
    assert first.poll() is None and not (tmp_path / "second").exists()


def test_no_vllm_is_one_line(start: Start, tmp_path: Path) -> None:
    (tmp_path / "bin" / "vllm").unlink()
    process = start()
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and "there is no command vllm" in errors and "Traceback" not in errors


def test_vllm_knows_every_option(start: Start, tmp_path: Path) -> None:
    """Guards the names of a server's options, which differ from one vLLM to the next, and the command itself."""
    pytest.importorskip("vllm")
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    start(MODEL="some/model", TP="2")
    _, *arguments = called(tmp_path)
    parser = FlexibleArgumentParser()
    ServeSubcommand().subparser_init(parser.add_subparsers())
    options = parser.parse_args(arguments)
    assert (options.model_tag, options.tensor_parallel_size, options.max_num_seqs) == ("some/model", 2, 1024)
    assert options.limit_mm_per_prompt["image"] == 2 and options.host == "127.0.0.1"
