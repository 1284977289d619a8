"""One check: in a process of its own, within a bound of time, to one line; and what of it may leave the machine.

A check is a function of the `Node` that returns a line and facts for `node.json`. It ends with `UserError` if what it
looked at has to be mended, with `Skipped` if it does not apply. Whatever else happens, a crash of the interpreter
and a hang included, is a check that `fails`. Processes are forked from one that has imported what all need and has
touched no device (`forkserver`), so that each begins anew and costs no import.
"""

from __future__ import annotations

import contextlib
import getpass
import multiprocessing
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from emu3.errors import UserError, one_line

ROOT = Path(__file__).parents[2]
PRELOADED = ["rl.check_node.hub_checks", "rl.check_node.judge", "rl.check_node.arithmetic", "rl.check_node.runs"]
GRACE = 15.0
"""Seconds that what a check has started gets to end by itself."""

Status = Literal["ok", "fails", "skipped"]
Facts = dict[str, Any]
"""JSON values."""


class Skipped(Exception):
    """The check does not apply here. The message is one line: why, and what to do where it should apply."""


@dataclass(frozen=True)
class Node:
    """What the checks are about. gpus: visible here. run_folder: where runs are written. judge: its address or None.
    concurrency: questions in flight. judge_seconds: for which it is asked."""

    gpus: int
    run_folder: Path
    judge: str | None
    concurrency: int = 64
    judge_seconds: float = 5.0

    @property
    def ranks(self) -> int:
        """Processes of a small run: one for each GPU, two without."""
        return self.gpus or 2


@dataclass(frozen=True)
class Check:
    """run: called with the node and `arguments`; a function of a module, so that it has a name in another process.
    seconds: after which it fails."""

    name: str
    run: Callable[..., tuple[str, Facts]]
    seconds: float
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class CheckResult:
    """line: what was found, and what to do about it. seconds: that it took. cpu_seconds: of it and of what it started,
    as far as that has ended; None if it has not said so."""

    name: str
    status: Status
    line: str
    seconds: float
    cpu_seconds: float | None = None
    facts: Facts = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.status:<8} {self.name:<16} {self.line}  [{self.seconds:.1f} s]"


def bounded(check: Check, node: Node) -> CheckResult:
    """Run a check to its result; never raises what the check raises."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    start, cpu_seconds = time.monotonic(), None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        log = Path(folder, "log")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_in_child, args=(check, node, sender, log))
        process.start()
        sender.close()
        try:
            if receiver.poll(check.seconds):
                (status, line, facts), cpu_seconds = receiver.recv()
            else:
                status, line, facts = "fails", f"hangs: no end after {check.seconds:.0f} s{_last_line(log)}", {}
        except EOFError:  # it ended without a word
            process.join(GRACE)
            code = process.exitcode
            how = signal.Signals(-code).name if code is not None and code < 0 else f"code {code}"
            status, line, facts = "fails", f"crashed ({how}){_last_line(log)}", {}
        finally:
            _end(process.pid)
            process.join(GRACE)
            receiver.close()
    return CheckResult(check.name, status, line, time.monotonic() - start, cpu_seconds, facts)


def command(arguments: Sequence[str], seconds: float, **variables: str) -> str:
    """What a command of this checkout prints. Raises UserError with its last line if it fails or takes longer.

    Without what a surrounding launcher may have set for its ranks; `variables` are added to the environment.
    """
    foreign = (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "NNODES",
        "NODE_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
    )
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    # "python" in a script has to be the one that runs this.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(arguments, env=environment | variables, stdout=output, stderr=subprocess.STDOUT)
        try:
            code = process.wait(seconds)
            how = f"ended with code {code}"
        except subprocess.TimeoutExpired:
            process.terminate()  # the launcher of ranks ends them when it is told to
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            code, how = 1, f"took longer than {seconds:.0f} s"
        output.seek(0)
        text = output.read()
    if code:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        last = next((line for line in reversed(lines) if _is_error(line)), lines[-1] if lines else "")
        raise UserError(f"{_shown_command(arguments)} {how}: {last[:300]}")
    return text


def _is_error(line: str) -> bool:
    return re.match(r"(\[rank\d+\]: ?)?(error\b|[\w.]*(Error|Exception|Interrupt|Exit)\b)", line) is not None


def _shown_command(arguments: Sequence[str]) -> str:
    names = [Path(part).name for part in arguments if not part.startswith("-")]
    return next((name for name in names if name.endswith(".sh")), names[1] if len(names) > 1 else names[0])


def _in_child(check: Check, node: Node, sender: Connection, log: Path) -> None:
    os.setsid()  # whatever it starts ends with it
    os.environ["TMPDIR"], tempfile.tempdir = str(log.parent), None  # what it leaves behind when it is ended, too
    with log.open("w") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    ended = outcome(check, node)
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    sender.send((ended, sum(used.ru_utime + used.ru_stime for used in usage)))
    sender.close()


def outcome(check: Check, node: Node) -> tuple[Status, str, Facts]:
    """Run a check in this process: its status, its line, its facts."""
    try:
        line, facts = check.run(node, *check.arguments)
        return "ok", line, facts
    except Skipped as reason:
        return "skipped", one_line(reason), {}
    except UserError as error:
        return "fails", " ".join(str(error).split()), getattr(error, "facts", {})
    except Exception as error:  # a check is there to find out what nobody thought of
        return "fails", f"{type(error).__name__}: {one_line(error)}", {}


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return f": {lines[-1][:200]}" if lines else ""


def _end(pid: int | None) -> None:
    """End the session that a check is, politely first: a launcher ends its ranks, which have sessions of their own."""
    assert pid is not None
    for kind, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 0.0)):
        try:
            if os.getsid(pid) != pid:
                return  # it ended before it was one
            os.killpg(pid, kind)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and _alive(pid):
            time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


SECRET_NAMES = re.compile("(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE)
HOST_NAMES = re.compile("(.*_)?(HOST|HOSTNAME)|.*NODENAME|MASTER_ADDR", re.IGNORECASE)
PATTERNS = (
    (re.compile(r"\b(hf_\w{8,}|sk-[\w-]{8,}|Bearer [^\s,]+)"), "[key]"),
    (re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>,;)\]]+", re.IGNORECASE), "[address]"),
    (re.compile(r"(?<![\w./\]-])~?/(?!dev/shm\b)(?:[^\s'\":,;()\[\]]+)"), "[path]"),
    (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b"), "[address]"),
    (
        re.compile(r"(?<![\w:])(?:[0-9a-f]{1,4}:){3,7}[0-9a-f]{1,4}\b|(?<![\w:])[0-9a-f]{0,4}::[0-9a-f:]*[0-9a-f]\b"),
        "[address]",
    ),
)


class Shared:
    """What may leave the machine of a text: no user, host, address, path or key.

    environment: whose keys, hosts and users are taken out. addresses: further ones, such as the judge's.
    """

    def __init__(self, environment: Mapping[str, str], addresses: Iterable[str] = ()) -> None:
        words: dict[str, str] = {}
        secrets = {value for name, value in environment.items() if SECRET_NAMES.search(name) and len(value) > 3}
        self._secrets = sorted(secrets, key=len, reverse=True)
        for value in (*environment.values(), *addresses):
            for address in value.split(","):
                if "://" in address and (host := _host_of(address)):
                    words[host] = "[host]"
        hosts = [socket.gethostname(), *(value for name, value in environment.items() if HOST_NAMES.fullmatch(name))]
        for host in hosts:
            if re.fullmatch(r"[\w.-]+", host):
                words |= {host: "[host]", host.partition(".")[0]: "[host]"}
        users = [environment.get("USER", ""), environment.get("LOGNAME", ""), Path(environment.get("HOME", "")).name]
        with contextlib.suppress(KeyError, OSError):  # a container whose user has no name
            users.append(getpass.getuser())
        words |= dict.fromkeys(filter(None, users), "[user]")
        for public in ("", "localhost"):
            words.pop(public, None)
        self._words = words
        each = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
        self._any_word = re.compile(rf"(?<![A-Za-z0-9])({each})(?![A-Za-z0-9])") if words else None

    def text(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        for pattern, instead in PATTERNS:
            text = pattern.sub(instead, text)
        if self._any_word is not None:
            text = self._any_word.sub(lambda found: self._words[found[1]], text)
        return text

    def value(self, value: Any) -> Any:
        """A JSON value with every text in it, keys too, as `text`."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(item) for item in value]
        return value


def _host_of(address: str) -> str | None:
    try:
        return urlsplit(address.strip()).hostname
    except ValueError:
        return None
