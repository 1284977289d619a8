"""A check ends as one line whatever becomes of it, and what leaves the machine tells nothing of it."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from emu3.errors import UserError
from rl.check_node.check import Check, CheckResult, Facts, Node, Shared, Skipped, bounded, command

NODE = Node(0, Path("runs"), None)


def fine(node: Node, word: str) -> tuple[str, Facts]:
    print("what a library prints")
    return f"{word} {node.ranks}", {"rank": os.environ.get("RANK")}


def mendable(node: Node) -> tuple[str, Facts]:
    raise UserError("no space:\nset APP__BASE_EXP_DIR")


def elsewhere(node: Node) -> tuple[str, Facts]:
    raise Skipped("no GPU")


def buggy(node: Node) -> tuple[str, Facts]:
    raise ZeroDivisionError("of all things")


def crashing(node: Node) -> tuple[str, Facts]:
    sys.stderr.write("the last words\n")
    sys.stderr.flush()
    ctypes.string_at(0)
    raise AssertionError


def hanging(node: Node, told: str) -> tuple[str, Facts]:
    Path(told).with_name("folder").write_text(tempfile.mkdtemp())
    child = subprocess.Popen(["sleep", "600"])
    Path(told).write_text(str(child.pid))
    time.sleep(600)
    raise AssertionError


def ran(check: Check) -> tuple[str, str]:
    result = bounded(check, NODE)
    assert "\n" not in str(result)
    return result.status, result.line


def test_each_end_is_one_line() -> None:
    """Guards a page that ends at the check which finds something."""
    assert ran(Check("a", fine, 60, ("ranks",))) == ("ok", "ranks 2")
    assert ran(Check("a", mendable, 60)) == ("fails", "no space: set APP__BASE_EXP_DIR")
    assert ran(Check("a", elsewhere, 60)) == ("skipped", "no GPU")
    assert ran(Check("a", buggy, 60)) == ("fails", "ZeroDivisionError: of all things")


def test_a_crash_of_the_interpreter_is_a_line() -> None:
    status, line = ran(Check("a", crashing, 60))
    assert status == "fails" and line.startswith("crashed (SIGSEGV)")
    assert "the last words" in line


def test_a_check_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    """Guards a node whose GPUs stay taken by a check that nobody waits for any more."""
    told = tmp_path / "pid"
    status, line = ran(Check("a", hanging, 3, (str(told),)))
    assert (status, line) == ("fails", "hangs: no end after 3 s")
    assert not Path((tmp_path / "folder").read_text()).exists()
    deadline = time.monotonic() + 300
    while alive(told.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: str) -> bool:
    stat = Path("/proc", pid, "stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_command_fails_with_the_line_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with the last of a library's, and not on a surrounding launcher's ranks."""
    monkeypatch.setenv("RANK", "7")
    told = "import os; print(os.environ.get('RANK'), os.environ['ADDED'])"
    assert command([sys.executable, "-c", told], 60, ADDED="1") == "None 1\n"
    fails = "import sys; print('error: no such model'); print('goodbye'); sys.exit(3)"
    with pytest.raises(UserError, match=r"ended with code 3: error: no such model$"):
        command([sys.executable, "-c", fails], 60)
    with pytest.raises(UserError, match=r"ended with code 1: ValueError: bad$"):
        command([sys.executable, "-c", "raise ValueError('bad')"], 60)
    with pytest.raises(UserError, match="took longer than 1 s"):
        command([sys.executable, "-c", "import time; time.sleep(60)"], 1)


ENVIRONMENT = {
    "USER": "mallory",
    "HOME": "/home/mallory",
    "HF_TOKEN": "hf_AbCdEfGhIj",
    "OPENAI_API_KEY": "plainkey123",
    "TOKENIZERS_PARALLELISM": "false",
    "APP__REWARD_FUNCTION_API_BASE": "http://gpu3.cluster.org:4877/v1",
    "SLURMD_NODENAME": "node-17",
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("the judge at http://gpu3.cluster.org:4877/v1 is away", "the judge at [address] is away"),
        ("Cannot connect to host gpu3.cluster.org:4877", "Cannot connect to host [host]:4877"),
        ("/home/mallory/runs/rl is full, so is /scratch", "[path] is full, so is [path]"),
        ("no file ~/x.json, 'data/mallory/x'", "no file [path], 'data/[user]/x'"),
        ("key plainkey123, Bearer abc, hf_ZyXwVuTsRq and sk-abcdefgh1", "key [key], [key], [key] and [key]"),
        ("node-17 says so to 10.0.3.7 and fe80::1ff:fe23:4567:890a", "[host] says so to [address] and [address]"),
        (
            "0.94 GB/s, false, 2/3 of /dev/shm, mair-lab/sft-simple",
            "0.94 GB/s, false, 2/3 of /dev/shm, mair-lab/sft-simple",
        ),
        ("torch 2.13.0+cu130, driver 580.65.06, c10::cuda", "torch 2.13.0+cu130, driver 580.65.06, c10::cuda"),
    ],
)
def test_what_is_nobodys_business_is_taken_out(text: str, shown: str) -> None:
    shared = Shared(ENVIRONMENT)
    assert shared.text(text) == shown
    assert shared.value({"a": [text, 1, None, True]}) == {"a": [shown, 1, None, True]}


def test_this_machine_and_a_judge_that_was_named_are_taken_out() -> None:
    shared = Shared({}, ["http://judge-host:1/v1, http://other:2/v1"])
    assert shared.text(f"{socket.gethostname()} judge-host other") == "[host] [host] [host]"


def test_a_result_is_a_line() -> None:
    assert str(CheckResult("gpus", "ok", "4 x H100", 1.25)) == "ok       gpus             4 x H100  [1.2 s]"
