"""The harness of kills: that it finds what it is for, on commands of a few lines, and one stage as it is."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

from dev.kills import __main__ as kills
from dev.kills.compare import differences
from dev.kills.stages import Stage

# Ten files, each whole or absent, in a process that leaves nothing behind and goes on where it stopped.
GOOD = """
import os, sys, time
from pathlib import Path
out = Path(sys.argv[1])
out.mkdir(exist_ok=True)
for rest in out.glob("*.tmp"): rest.unlink()
for number in range(10):
    if not (out / str(number)).exists():
        (out / "part.tmp").write_text("x" * number)
        time.sleep(0.01)
        (out / "part.tmp").rename(out / str(number))
"""
IN_PLACE = """
import sys, time
from pathlib import Path
out = Path(sys.argv[1])
out.mkdir(exist_ok=True)
for number in range(10):
    if not (out / str(number)).exists():
        with open(out / str(number), "w") as file:
            for _ in range(10): print("line", file=file, flush=True); time.sleep(0.002)
"""
WITH_A_CHILD = """
import subprocess, sys, time
from pathlib import Path
out = Path(sys.argv[1])
out.mkdir(exist_ok=True)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
(out / "file").touch()
"""


def harness(code: str, folder: Path) -> kills.Harness:
    return kills.Harness(Stage("toy", lambda out: ["-S", "-c", code, out]), folder, random.Random(0))


def test_a_command_that_writes_whole_files_is_found_good(tmp_path: Path) -> None:
    found = harness(GOOD, tmp_path).kill(5)
    assert (found.kills, found.differences, found.orphans, found.refusals) == (5, [], [], [])
    assert found.ends >= 1


def test_half_a_file_is_found(tmp_path: Path) -> None:
    """Guards a harness that is content with everything: a file that is written in place is cut by a kill."""
    assert any("differs" in line for line in harness(IN_PLACE, tmp_path).kill(8).differences)


def test_a_process_that_stays_is_found_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kills, "FAREWELL", 0.2)
    found = harness(WITH_A_CHILD, tmp_path).kill(0)
    assert len(found.orphans) == 1 and "time.sleep(600)" in found.orphans[0]


def test_times_and_ports_are_no_difference_and_the_rest_is(tmp_path: Path) -> None:
    for name, value in (("one", 1), ("two", 1), ("three", 2)):
        (tmp_path / name).mkdir()
        tree = {"step": 1, "loss": value, "seconds": {"train": random.random()}, "url": f"http://127.0.0.1:{value}/v1"}
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(tree) + "\n")
    (tmp_path / "two" / ".file.7.tmp").touch()
    assert differences(tmp_path / "one", tmp_path / "two") == [".file.7.tmp: only in two"]
    assert differences(tmp_path / "one", tmp_path / "three") == ["metrics.jsonl: differs"]


def test_annotating_survives_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the real stages; the others are killed in tests of their own, and all of them by `.ci/release`."""
    monkeypatch.setattr(sys, "argv", ["kills", "--output-dir", str(tmp_path), "--stages", "annotate", "--kills", "3"])
    with pytest.raises(SystemExit) as ended:
        kills.main()
    found = json.loads((tmp_path / "kills.json").read_text())["annotate"]
    assert ended.value.code == 0 and found["kills"] == 3, found
