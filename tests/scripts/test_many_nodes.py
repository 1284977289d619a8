"""The scripts that start training on one machine or several, among stand-ins for Python, Slurm and the GPUs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLURM = ("judge", "rl", "sft")
# What a script starts says where it is and with which arguments, in place of doing it.
STAND_INS = {
    "nvidia-smi": 'for gpu in 0 1 2 3; do echo "GPU $gpu: H100"; done',
    "python": 'echo "${NODE_RANK-}/${NNODES-} ${MASTER_ADDR-}:${MASTER_PORT-}|$APP__REWARD_FUNCTION_API_BASE|$*"',
    "srun": """
        echo "srun cpus=$SRUN_CPUS_PER_TASK $1" >>srun.log
        shift
        for node in $(seq 0 $((SLURM_NNODES - 1))); do SLURM_NODEID=$node "$@" || exit; done""",
    "scontrol": """
        case $1 in
            show) printf 'gpu%s\\n' 7 9 ;;
            requeue) echo "$2" >requeued ;;
        esac""",
}
JOB = {"SLURM_JOB_ID": "123456", "SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "48", "SLURM_JOB_NODELIST": "gpu[7,9]"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the scripts, without the .venv that they would prefer, and with `bin`."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "scripts" / "reward_server.sh").write_text('echo "judge on $HOST, address to $ADDRESS_FILE: $*"\n')
    (tmp_path / "bin").mkdir()
    for name, text in STAND_INS.items():
        stand_in(tmp_path, name, text)
    return tmp_path


def stand_in(checkout: Path, name: str, text: str) -> None:
    path = checkout / "bin" / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def environment(checkout: Path, **variables: str) -> dict[str, str]:
    """This process's, without what a person may have exported for real runs."""
    foreign = re.compile("APP__|SLURM_|MASTER_|NNODES|NODE_RANK|RANKS|GPUS|ADDRESS_FILE|PER_DEVICE")
    kept = {name: value for name, value in os.environ.items() if not foreign.match(name)}
    return kept | {"PATH": f"{checkout / 'bin'}:{os.environ['PATH']}", "APP__REWARD_FUNCTION_API_BASE": ""} | variables


def started(checkout: Path, command: Sequence[str], variables: Mapping[str, str] | None = None) -> list[str]:
    """The lines of what `bash command` starts."""
    done = subprocess.run(
        ["bash", *command],
        cwd=checkout,
        env=environment(checkout, **(variables or {})),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").rglob("*.s*")), ids=lambda path: path.name)
def test_the_shell_can_read_it(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-x", "--shell=bash", script], cwd=ROOT, check=True)


def test_one_machine_takes_its_gpus_and_the_loopback_judge(checkout: Path) -> None:
    (line,) = started(checkout, ["scripts/rl.sh", "a/earl.jsonnet", "steps=3"])
    assert line == "/ :|http://127.0.0.1:4877/v1|-m emu3.launch --ranks 4 rl.train a/earl.jsonnet steps=3"


def test_runs_are_named_for_their_config(checkout: Path) -> None:
    """Guards two configs that are started one after the other and would be taken for one run to continue."""
    stand_in(checkout, "python", 'echo "$APP__RUN_NAME"')
    assert started(checkout, ["scripts/rl.sh", "rl/configs/sft_s__rl_sc.jsonnet"]) == ["sft_s__rl_sc"]
    assert started(checkout, ["scripts/rl.sh", "earl.jsonnet"], {"APP__RUN_NAME": "mine"}) == ["mine"]


def test_the_judge_is_where_its_file_says_unless_told_otherwise(checkout: Path) -> None:
    (checkout / "runs").mkdir()
    (checkout / "runs" / "judge.address").write_text("http://gpu3:4877/v1\n")
    (line,) = started(checkout, ["scripts/rl.sh", "x.jsonnet"])
    assert line.split("|")[1] == "http://gpu3:4877/v1"
    (line,) = started(checkout, ["scripts/rl.sh", "x.jsonnet"], {"APP__REWARD_FUNCTION_API_BASE": "http://a/v1"})
    assert line.split("|")[1] == "http://a/v1"


def test_the_batch_stays_128_on_more_machines(checkout: Path) -> None:
    """Guards the published learning rate, which belongs to that batch."""
    for variables, steps in ({}, 8), ({"NNODES": "2"}, 4), ({"NNODES": "4", "PER_DEVICE": "8"}, 1):
        (line,) = started(checkout, ["scripts/ie_sft.sh"], variables)
        assert f"--gradient_accumulation_steps {steps} " in line
    odd = subprocess.run(
        ["bash", "scripts/ie_sft.sh"],
        cwd=checkout,
        env=environment(checkout, NNODES="3"),
        capture_output=True,
        text=True,
    )
    assert odd.returncode == 2 and odd.stderr.startswith("error: 48 rows at once") and odd.stderr.count("\n") == 1


def test_rl_on_two_nodes_of_slurm(checkout: Path) -> None:
    """One task per node, which learns the job's first node and its own number."""
    (checkout / "runs").mkdir()
    (checkout / "runs" / "judge.address").write_text("http://gpu3:4877/v1\n")
    lines = started(checkout, ["scripts/slurm/rl.sbatch", "earl.jsonnet", "watch.project=a b"], JOB)
    command = "http://gpu3:4877/v1|-m emu3.launch --ranks 4 rl.train earl.jsonnet watch.project=a b"
    assert lines == [f"{node}/2 gpu7:23456|{command}" for node in (0, 1)]
    assert (checkout / "srun.log").read_text() == "srun cpus=48 --kill-on-bad-exit=1\n"


def test_rl_waits_for_the_judge(checkout: Path) -> None:
    process = subprocess.Popen(
        ["bash", "scripts/slurm/rl.sbatch", "earl.jsonnet"],
        cwd=checkout,
        env=environment(checkout, POLL_SECONDS="0.05", ADDRESS_FILE="address", **JOB | {"SLURM_NNODES": "1"}),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting for a judge to write its address to address\n"
    assert not (checkout / "srun.log").exists()
    (checkout / "address").write_text("http://gpu3:4877/v1\n")
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "|http://gpu3:4877/v1|" in rest


def test_sft_and_the_judge_in_slurm(checkout: Path) -> None:
    lines = started(checkout, ["scripts/slurm/sft.sbatch", "--max_steps", "3"], JOB)
    assert [line.split(" ")[0] for line in lines] == ["0/2", "1/2"]
    assert all("--gradient_accumulation_steps 4 " in line and line.endswith("--max_steps 3") for line in lines)
    one = JOB | {"SLURM_NNODES": "1"}
    assert started(checkout, ["scripts/slurm/judge.sbatch", "--seed", "1"], one) == [
        "judge on 0.0.0.0, address to runs/judge.address: --seed 1"
    ]


@pytest.mark.parametrize("name", SLURM)
def test_a_job_whose_time_is_up_goes_back_into_the_queue(checkout: Path, name: str) -> None:
    """Guards against a shell that holds the signal back until the training that it waits for has ended, and against a
    job that is queued again, and so ended, before training has saved."""
    text = (checkout / "scripts" / "slurm" / f"{name}.sbatch").read_text()
    assert "#SBATCH --requeue\n" in text and "#SBATCH --signal=B:USR1@" in text
    saves = "trap 'sleep 1; [ -e requeued ] || echo first > saved; exit 138' USR1"
    stand_in(checkout, "srun", f"{saves}; echo started; for second in $(seq 600); do sleep 1 >&-; done")
    process = subprocess.Popen(
        ["bash", f"scripts/slurm/{name}.sbatch"],
        cwd=checkout,
        env=environment(checkout, **JOB | {"APP__REWARD_FUNCTION_API_BASE": "http://a/v1"}),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=300) == 128 + signal.SIGUSR1
        assert (checkout / "requeued").read_text() == "123456\n"
        assert (checkout / "saved").read_text() == "first\n"
    finally:
        with suppress(ProcessLookupError):  # nothing of it is left
            os.killpg(process.pid, signal.SIGKILL)


def test_a_failed_task_fails_the_job(checkout: Path) -> None:
    stand_in(checkout, "srun", "exit 2")
    done = subprocess.run(["bash", "scripts/slurm/sft.sbatch"], cwd=checkout, env=environment(checkout, **JOB))
    assert done.returncode == 2
