"""Several processes as one command."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from emu3.errors import UserError
from emu3.launch import machines

RANK_MODULE = """
import os, sys, time
from emu3.errors import UserError, run_main

def main() -> None:
    rank, wanted = int(os.environ["RANK"]), sys.argv[1]
    if wanted in ("all", str(rank)):
        raise UserError("no such column")
    if wanted == "none":
        sys.stdout.write(f"rank {rank} of {os.environ['WORLD_SIZE']} got {sys.argv[2:]}\\n")  # one write, one line
    else:
        time.sleep(600)

run_main(main)
"""


def ranks(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "rank_module.py").write_text(RANK_MODULE)
    command = [sys.executable, "-m", "emu3.launch", "--ranks", "2", "rank_module", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parents[2])])}
    return subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)


def test_each_rank_gets_the_arguments_as_they_are(tmp_path: Path) -> None:
    """Flags that the launcher knows as well belong to the module once its name is said."""
    ended = ranks(tmp_path, "none", "--ranks", "7", "key=a b")
    assert ended.returncode == 0, ended.stderr
    told = "got ['--ranks', '7', 'key=a b']"
    assert sorted(ended.stdout.splitlines()) == [f"rank {rank} of 2 {told}" for rank in (0, 1)]


@pytest.mark.parametrize(("who", "told"), [("all", "error: no such column"), ("1", "error (rank 1): no such column")])
def test_an_error_is_one_line_and_code_2(tmp_path: Path, who: str, told: str) -> None:
    """torchrun prints a table of tracebacks under it and ends with 1; and a rank that waits for the failed one would
    wait for ever."""
    ended = ranks(tmp_path, who)
    assert (ended.returncode, ended.stderr.splitlines()) == (2, [told])


WARNING_MODULE = """
import os, sys

sys.stderr.write(os.environ["TORCH_CPP_LOG_LEVEL"])
"""


@pytest.mark.parametrize(("given", "told"), [(None, "ERROR"), ("WARNING", "WARNING")])
def test_torch_says_nothing_behind_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, told: str
) -> None:
    """On GPUs a rank that ends with an error has not taken its NCCL group down, and the group's destructor warns of
    that as the last thing of all. Whoever sets the variable gets what it says."""
    monkeypatch.delenv("TORCH_CPP_LOG_LEVEL", raising=False)
    if given is not None:
        monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", given)
    (tmp_path / "rank_module.py").write_text(WARNING_MODULE)
    command = [sys.executable, "-m", "emu3.launch", "--ranks", "1", "rank_module"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert ended.stderr == told


MEETING_MODULE = """
import os, sys
from datetime import timedelta
import torch
import torch.distributed as dist
from emu3.errors import UserError, run_main

def main() -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    if os.environ["RANK"] == sys.argv[1]:
        raise UserError("no such column")
    total = torch.tensor(dist.get_rank() + 1)
    dist.all_reduce(total)
    dist.destroy_process_group()
    print(f"rank {os.environ['RANK']}, {os.environ['LOCAL_RANK']} here: {total.item()}")

run_main(main)
"""


def two_machines(folder: Path, *arguments: str) -> list[tuple[int, list[str], list[str]]]:
    """Exit code and lines on the two outputs, of each."""
    (folder / "meeting_module.py").write_text(MEETING_MODULE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parents[2])])}
    environment |= {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    commands = [
        subprocess.Popen(
            [sys.executable, "-m", "emu3.launch", "--ranks", "1", "meeting_module", *arguments],
            env=environment | {"NODE_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [command.communicate(timeout=900) for command in commands]
    return [
        (command.returncode, out.splitlines(), err.splitlines())
        for command, (out, err) in zip(commands, outputs, strict=True)
    ]


def test_two_machines_are_one_run(tmp_path: Path) -> None:
    """Each with its own command; the ranks count on from one to the next and reach each other."""
    (code0, out0, _), (code1, out1, _) = two_machines(tmp_path, "none")
    assert (code0, code1) == (0, 0)
    assert (out0, out1) == (["rank 0, 0 here: 3"], ["rank 1, 0 here: 3"])


def test_an_error_on_another_machine_is_that_machines_last_line(tmp_path: Path) -> None:
    """And the first does not wait for it for ever."""
    (code0, _, _), (code1, _, err1) = two_machines(tmp_path, "1")
    assert code0 != 0
    assert (code1, err1[-1]) == (2, "error (rank 1): no such column")


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"NNODES": "two"}, "NNODES is 'two', not a number"),
        ({"NNODES": "2", "NODE_RANK": "1"}, "NNODES is 2, but MASTER_ADDR is not set"),
        ({"NNODES": "2", "MASTER_ADDR": "a"}, "NNODES is 2, but NODE_RANK is not set"),
        (
            {"NNODES": "2", "MASTER_ADDR": "a", "NODE_RANK": "2"},
            "NODE_RANK is 2, but NNODES=2 machines count from 0 to 1",
        ),
        ({"NNODES": "2", "MASTER_ADDR": "a", "NODE_RANK": "0", "MASTER_PORT": "-1"}, "MASTER_PORT is '-1', not a"),
    ],
)
def test_variables_that_do_not_fit(variables: dict[str, str], told: str) -> None:
    """Guards against machines that wait for each other for minutes before anybody sees why."""
    with pytest.raises(UserError, match=told):
        machines(variables)


def test_one_machine_needs_no_variables() -> None:
    """A cluster may set some of them for jobs that use one machine."""
    assert machines({"MASTER_ADDR": "a", "NODE_RANK": "3"}) == machines({"NNODES": "1"}) == ["--standalone"]
