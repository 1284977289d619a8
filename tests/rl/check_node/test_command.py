"""The command as a person types it: its page, its code, and that its file tells nothing of the machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from emu3.errors import UserError, run_main
from rl.check_node.__main__ import checks, chosen, main

ROOT = Path(__file__).parents[3]
MARKERS = {
    "USER": "markeruser",
    "LOGNAME": "markeruser",
    "HOSTNAME": "markerhost.example.org",
    "SLURM_JOB_NODELIST": "markernode[1-2]",
    "MASTER_ADDR": "markermaster",
    "HF_TOKEN": "hf_markertoken",
    "OPENAI_API_KEY": "sk-markeropenai",
    "WANDB_API_KEY": "markerwandb",
    "HF_ENDPOINT": "http://markermirror.invalid:8080",
    "APP__REWARD_FUNCTION_API_BASE": "http://markerjudge.invalid:4877/v1",
}


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("APP__", "HF_"))}
    path = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / "check_node.sh"), *arguments],
        cwd=folder,
        env={**environment, "PATH": path, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=1800,
    )


def test_one_page_and_nothing_private_in_its_file(tmp_path: Path) -> None:
    """Guards a bug report that gives away who works where, and with which key; and a page that ends at a fault."""
    home = tmp_path / "markerhome"
    home.mkdir()
    names = ["gpus", "ranks", "memory", "disk", "packages", "hub", "BAAI/Emu3-Stage1", "judge", "fp32"]
    variables = {**MARKERS, "HOME": str(home), "APP__BASE_EXP_DIR": str(home / "markerruns")}
    done = run(home, "--only", *names, **variables)
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [
        ["skipped", "gpus"],
        ["ok", "ranks"],
        ["ok", "memory"],
        ["ok", "disk"],
        ["ok", "packages"],
        ["fails", "hub"],
        ["skipped", "BAAI/Emu3-Stage1"],
        ["fails", "judge"],
        ["ok", "fp32"],
    ], done.stdout + done.stderr
    assert re.match(r"5 ok, 2 fail, 2 skipped in \d+ s; node.json holds this", lines[-1])
    assert done.returncode == 1 and done.stderr == ""
    assert all(re.search(r"\[\d+\.\d s\]$", line) for line in lines[:-1])
    text = (home / "node.json").read_text()
    assert "marker" not in text and str(tmp_path) not in text and socket.gethostname() not in text
    found = json.loads(text)
    assert [check["name"] for check in found["checks"]] == names
    judged = found["checks"][7]
    assert judged["status"] == "fails" and "the judge at [address] cannot be used" in judged["line"]
    assert "markerjudge" in lines[7], "the page is for the one who reads it"
    assert re.search(r"2 ranks over gloo, 16 MB summed at \d+\.\d\d GB/s", lines[1])
    assert found["checks"][1]["facts"]["backend"] == "gloo" and found["checks"][1]["cpu_seconds"] > 0
    assert found["checks"][4]["facts"]["versions"]["transformers"] == "5.19.0"


def test_the_judge_is_where_its_script_says(tmp_path: Path) -> None:
    """As for scripts/rl.sh, with a Python that only tells what it was started with."""
    scripts = Path(shutil.copytree(ROOT / "scripts", tmp_path / "scripts"))
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/usr/bin/env bash\necho "$APP__REWARD_FUNCTION_API_BASE|$*"\n')
    python.chmod(0o755)
    (tmp_path / "address").write_text("http://gpu3:4877/v1\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("APP__")}
    environment |= {"PATH": f"{python.parent}:{environment['PATH']}", "ADDRESS_FILE": str(tmp_path / "address")}
    command = ["bash", str(scripts / "check_node.sh"), "--only", "judge"]
    for variables, judge in ({}, "gpu3:4877"), ({"APP__REWARD_FUNCTION_API_BASE": "http://mine/v1"}, "mine"):
        done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
        assert done.stdout == f"http://{judge}/v1|-m rl.check_node --only judge\n"


def test_a_page_that_is_ended_takes_its_check_with_it(tmp_path: Path) -> None:
    """Guards ranks that go on, on GPUs too, when a job's time is up or somebody gives up."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("APP__")}
    command = [sys.executable, "-m", "rl.check_node", "--only", "disk", "rl"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env={**environment, "PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None and " disk " in process.stdout.readline()
    deadline = time.monotonic() + 900
    while not started(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.terminate()
    assert process.wait(900) == 128 + signal.SIGTERM
    while started(tmp_path):
        assert time.monotonic() < deadline + 900
        time.sleep(0.1)
    assert [check["name"] for check in json.loads((tmp_path / "node.json").read_text())["checks"]] == ["disk"]


def started(folder: Path) -> list[str]:
    """The commands of a run of RL that were started in `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if process.joinpath("cwd").resolve() == folder and b"rl.train" in process.joinpath("cmdline").read_bytes():
                found.append(process.name)
    return found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "gpu"], "error: there is no check 'gpu'; there are machine (gpus, ranks,"),
        (["--judge-seconds", "0"], "error: argument --judge-seconds: expected more than 0 and at most 1000000, got 0"),
        (["--quickly"], "unrecognized arguments: --quickly"),
    ],
)
def test_bad_usage_is_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["check_node", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == 2 and message in capsys.readouterr().err and not (tmp_path / "node.json").exists()


def test_code_0_when_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A check that does not apply is no fault."""
    output = tmp_path / "a" / "node.json"
    monkeypatch.setattr(sys, "argv", ["check_node", "--only", "shm", "disk", "--output", str(output)])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0 and "1 ok, 0 fail, 1 skipped" in capsys.readouterr().out
    found = json.loads(output.read_text())
    assert [check["status"] for check in found["checks"]] == ["skipped", "ok"]


def test_names_choose_checks() -> None:
    everything = [check.name for group in checks().values() for check in group]
    assert [check.name for check in chosen([], [])] == everything
    assert [check.name for check in chosen(["fast", "judge"], ["bf16"])] == ["judge", "fp32"]
    assert "rl" not in [check.name for check in chosen([], ["runs"])]
    with pytest.raises(UserError, match="no check 'x'"):
        chosen([], ["x"])


def test_the_page_in_docs_names_every_check() -> None:
    """Guards a check that nobody explains."""
    text = (ROOT / "docs" / "check-node.md").read_text(encoding="utf-8")
    for group, members in checks().items():
        assert f"`{group}`" in text
        for check in members:
            assert group == "published" or f"`{check.name}`" in text, check.name


@pytest.mark.slow
def test_all_of_it(tmp_path: Path) -> None:
    """Every check on this machine; those that need a Hub, GPUs, a judge or vLLM are skipped or say so. SFT and RL are
    the shipped scripts and settings on two ranks, RL with a checkpoint in between."""
    done = run(tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stdout
    facts = {check["name"]: check["facts"] for check in json.loads((tmp_path / "node.json").read_text())["checks"]}
    if find_spec("deepspeed") is not None:
        assert len(facts["sft"]["losses"]) == 2
        assert facts["rl"]["ranks"] == 2 and max(facts["rl"]["gaps"]) < 0.1
