"""A Python that has its libraries loaded already, for tests that start dozens of commands, and that can be killed.

    python warm_python.py serve SOCKET MODULE ...   loads the modules and waits: a fork of it runs each command
    python -S warm_python.py SOCKET -m MODULE ...   has `python -m MODULE ...` (or `SCRIPT.py ...`; -u is
                                                    passed over) run by a fork and ends as that does

A command finds what it finds in a process of its own: arguments, environment, working directory, output. With

    DIE="baselines.score --predictions x|rl.reward.cache:ReplyCache.put|3"

in its environment, a command line with these words is killed at the third call of that function, as the kernel does
it: no `finally` is run.
"""

from __future__ import annotations

import array
import itertools
import json
import os
import signal
import socket
import sys
from pathlib import Path


def serve(address: str, libraries: list[str]) -> None:
    import importlib

    for name in libraries:
        importlib.import_module(name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        while True:
            client, _ = listener.accept()
            with client:
                if os.fork() == 0:  # a command may start others, and wait for them
                    _answer(client)
            while _reaped():
                pass


def _answer(client: socket.socket) -> None:
    """In a fork: have a fork of its own run the command, and say how that ended."""
    call, output = _receive(client)
    child = os.fork()
    if child == 0:
        _run(call, output)
    for descriptor in output:
        os.close(descriptor)
    client.sendall(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
    os._exit(0)


def _reaped() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False


def _receive(client: socket.socket) -> tuple[dict, list[int]]:  # type: ignore[type-arg]
    """The call, and the descriptors of the caller's output and error output."""
    message, descriptors, _, _ = socket.recv_fds(client, 2**20, 2)
    while not message.endswith(b"\n"):
        message += client.recv(2**20)
    return json.loads(message), descriptors


def _run(call: dict, output: list[int]) -> None:  # type: ignore[type-arg]
    """In the fork: the command, to the end of the process."""
    import runpy
    import traceback

    code = 1
    try:
        os.dup2(output[0], 1)
        os.dup2(output[1], 2)
        os.chdir(call["folder"])
        os.environ.clear()
        os.environ.update(call["environment"])
        sys.executable = os.environ.get("PYTHON_OF_TEST", sys.executable)
        module, *arguments = itertools.dropwhile(lambda word: word in ("-u", "-m"), call["arguments"])
        sys.argv = [module, *arguments]
        sys.path[:0] = [str(Path(module).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        words, place, number = (os.environ.get("DIE") or "-||0").split("|")
        if place and words in " ".join([module, *arguments]):
            _die_at(place, int(number))
        if module.endswith(".py"):
            runpy.run_path(module, run_name="__main__")
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _die_at(place: str, number: int) -> None:
    """Replace the function `MODULE:NAME` or `MODULE:CLASS.NAME` by one whose call `number` kills the process."""
    import importlib

    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for attribute in owners:
        owner = getattr(owner, attribute)
    function, calls = getattr(owner, name), 0

    def deadly(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    setattr(owner, name, deadly)


def ask(address: str, arguments: list[str]) -> int:
    call = {"arguments": arguments, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        data = json.dumps(call).encode() + b"\n"
        descriptors = array.array("i", [1, 2])
        sent = server.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
        server.sendall(data[sent:])
        code = int(server.recv(16))
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
