"""Commands and ranks as forks of a Python that has its libraries: importing them takes longer than a tiny run."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
WARM_PYTHON = Path(__file__).with_name("warm_python.py")
LIBRARIES = ("rl.train", "emu3.train_image_editing.sft")  # not DeepSpeed, which changes torch's functions


def warm_ranks(ranks: int, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `-m MODULE ...` or `SCRIPT.py ...` on `ranks` gloo ranks as `emu3.launch` would, with 0 as one process that
    knows of none. Returns what all of them printed, and the first code that is not 0; ends within half an hour."""
    client = [sys.executable, "-S", str(WARM_PYTHON), str(_server()), *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables, **(_rendezvous(ranks) if ranks else {})}
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)] or [{}]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        started = [subprocess.Popen(client, env=environment | place, stdout=out, stderr=errors) for place in places]
        codes = [process.wait(1800) for process in started]
        texts = [file.read() for file in (out, errors) if file.seek(0) == 0]
    return subprocess.CompletedProcess(command, next(filter(None, codes), 0), *texts)


def _rendezvous(ranks: int) -> Mapping[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{port}",
    }


@lru_cache
def _server() -> Path:
    """The socket of this test process's warm Python, which is started when it is first needed."""
    address = Path(tempfile.mkdtemp()) / "python"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    atexit.register(_serve(address, LIBRARIES, environment).terminate)
    return address


@contextmanager
def warm_python(folder: Path, libraries: Sequence[str], environment: Mapping[str, str]) -> Iterator[Path]:
    """Makes `folder`/python, which runs each command as a fork of one Python that has imported `libraries`.

    environment: in which they are imported, which is when some read it; a command has its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shim, address = folder / "python", folder / "socket"
    server = _serve(address, libraries, environment)
    shim.write_text(f'#!/bin/sh\nPYTHON_OF_TEST=$0 exec {sys.executable} -S {WARM_PYTHON} {address} "$@"\n')
    shim.chmod(0o755)
    try:
        yield shim
    finally:
        server.terminate()
        server.wait()


def _serve(address: Path, libraries: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(WARM_PYTHON), "serve", str(address), *libraries]
    server = subprocess.Popen(command, env=environment, cwd=ROOT)
    while not address.exists():
        assert server.poll() is None, "Python did not start"
        time.sleep(0.02)
    return server
