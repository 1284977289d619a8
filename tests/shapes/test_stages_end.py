"""A stage's processes end with the pipeline, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emu3.errors import UserError
from emu3.run_folder import owned
from shapes import quickstart

PIPELINE = """
import signal, sys
from pathlib import Path
from shapes import quickstart
from shapes.stages import Stages

folder = Path(sys.argv[1])
sleeper = f"import os, time; open({str(folder / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
quickstart.run = lambda *_: Stages(folder, 1).run("long", ["-c", sleeper])
sys.argv[1:] = ["--output-dir", str(folder)]
quickstart.main()
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGHUP, 128 + signal.SIGHUP), (signal.SIGTERM, 128 + signal.SIGTERM)],
)
def test_children_end_with_the_quickstart(tmp_path: Path, number: int, code: int) -> None:
    """A closed terminal or a kill -9 left a trainer behind, beside which the next start began another."""
    process = subprocess.Popen([sys.executable, "-c", PIPELINE, str(tmp_path)], env=os.environ)
    end = time.monotonic() + 120
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    child = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    process.send_signal(number)
    assert process.wait(30) == code
    end = time.monotonic() + 30
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_second_quickstart_in_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["quickstart", "--output-dir", str(tmp_path)])
    with owned(tmp_path), pytest.raises(UserError, match="is in use by"):
        quickstart.main()
