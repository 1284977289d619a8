"""Ranks that wait for what only one of them does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from emu3.errors import UserError
from emu3.training import ranks

HERE = Path(__file__).parent


def two_ranks(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run them, and once more if gloo's sockets never met: on a machine with many sockets one may be closed on it."""
    done = _two_ranks(*arguments)
    return _two_ranks(*arguments) if "connectFullMesh failed" in done.stderr else done


def _two_ranks(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "emu3.launch", "--ranks", "2", "waiting_ranks", *arguments]
    path = os.pathsep.join([str(HERE), str(HERE.parents[2])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found, of two whose device group has 8 seconds while rank 0 takes 12."""
    folder = tmp_path_factory.mktemp("ranks")
    done = two_ranks("everything", str(folder))
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_a_slow_rank_is_waited_for(found: list[dict[str, Any]]) -> None:
    """NCCL's watchdog ended jobs whose rank 0 hashed a checkpoint for more than ten minutes."""
    for one in found:
        assert one["on_first"] == {"answer": 42}
        assert one["gather"] == [{"rank": 0}, {"rank": 1}]


def test_the_group_of_the_device_does_not_wait_that_long() -> None:
    """That the test above can fail: the same wait in the device's group ends the ranks."""
    done = two_ranks("device")
    assert done.returncode != 0
    assert "imed out" in done.stderr


def test_the_first_ranks_faults_are_everybodys(found: list[dict[str, Any]]) -> None:
    """Guards ranks that wait for a day for one that has ended, or that go on where rank 0 stopped."""
    mended = ["UserError: no such run", "OSError: [Errno 28] No space left on device: 'weights'"]
    mended.append("SafetensorError: I/O error")
    assert found[0]["faults"] == [*mended, "KeyError: 'a bug'"]
    assert found[1]["faults"] == [*mended, "RuntimeError: rank 0 failed: KeyError: 'a bug'"]


def test_groups_of_libraries_get_the_timeout_too(found: list[dict[str, Any]]) -> None:
    """`init_process_group(timeout=...)` sets that of the first group alone; DeepSpeed works in one of its own. Breaks
    when torch moves `distributed_c10d._world` or `_set_pg_timeout`."""
    for one in found:
        assert one["before"] == [8.0, 86400.0, 1800.0]
        assert one["after"] == [8.0, 86400.0, 8.0]


def test_the_message_of_a_rank_that_ends_is_the_last() -> None:
    """Who waits for it sees a broken connection first, and its traceback would bury the line that says what to do."""
    done = two_ranks("gone")
    assert done.stderr.splitlines()[-1] == "error (rank 1): no such column"
    assert "Traceback" not in done.stderr


def test_a_rank_that_was_killed_is_noticed_at_once() -> None:
    """And not after the day that the group waits for one that works."""
    done = two_ranks("killed")
    assert done.returncode != 0 and "Traceback" not in done.stderr


def test_one_process_has_nobody_to_wait_for() -> None:
    """Without a process group everything is what it was."""
    assert not dist.is_initialized()
    ranks.meet()
    assert ranks.on_first(lambda: 3) == 3 and ranks.gather("x") == ["x"]
    with pytest.raises(UserError, match="no such run"):
        ranks.on_first(lambda: (_ for _ in ()).throw(UserError("no such run")))
