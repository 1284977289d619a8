"""Scripts that are sourced, as the published README calls them: `. ./scripts/tokenize.sh`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("scripts", "baselines/scripts", "rl/scripts")
    for path in (ROOT / folder).glob("*.sh")
    if path.name != "environment.sh"
)
STATE = """state() {
    set +o; shopt -p; trap -p; declare -F; pwd; umask
    declare -p | grep -Ev '^declare -[^ ]* (_|BASH_[A-Z]*|PIPESTATUS|FUNCNAME|LINENO|SECONDS|S?RANDOM|EPOCH[A-Z]*)='
}"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The scripts, and a Python that prints its arguments and ends with code 7."""
    for folder in ("scripts", "baselines/scripts", "rl/scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@"\nexit 7\n')
    python.chmod(0o755)
    return tmp_path


def source(checkout: Path, lines: str, shell: str = "bash") -> subprocess.CompletedProcess[str]:
    variables = {"CUDA_VISIBLE_DEVICES": "", "PYTHON": "/nowhere/python3", "HOME": str(checkout)}
    foreign = ("GPUS", "RANK", "WORLD_SIZE", "NNODES", "MODEL_PATH", "DATAPATH", "VALPATH")
    environment = {name: value for name, value in os.environ.items() if name not in foreign} | variables
    return subprocess.run([shell, "-c", lines], cwd=checkout, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_callers_shell_stays_and_is_as_it_was(checkout: Path, script: str) -> None:
    """Guards a terminal that closes with the script, or goes on with its options, variables, functions or PATH."""
    done = source(
        checkout, f"{STATE}; code=; state > before; . ./{script} there; code=$?; state > after; echo ended $code"
    )
    ended = done.stdout.splitlines()[-1]
    assert ended.startswith("ended ") and ended not in ("ended ", "ended 0"), done.stderr
    before, after = ((checkout / name).read_text().splitlines() for name in ("before", "after"))
    assert [line for line in after if line not in before] == [f'declare -- code="{ended.partition(" ")[2]}"']
    assert [line for line in before if line not in after] == ['declare -- code=""']


@pytest.mark.parametrize("script", ["ie_sft", "ie_sft_offload"])
def test_what_was_not_exported_reaches_sft_arrays_too(checkout: Path, script: str) -> None:
    """Guards variables that were set for the script alone, as its published form has them in its own lines."""
    variables = "DATAPATH=(a b); COEF=(1 6); COT_KEYS=(why how); EXP_NAME=mine GPUS=1"
    done = source(checkout, f'{variables}; . ./scripts/{script}.sh --seed 3; echo "ended $?"')
    called = done.stdout.splitlines()[0]
    assert "--data a b --coefficients 1 6 --cot_keys why how " in called
    settings = script.replace("ie_sft", "zero3")
    assert called.endswith(f"/scripts/{settings}.json --bf16 --seed 3") and "/mine " in called
    assert done.stdout.splitlines()[-1] == "ended 7"


def test_the_published_variables_of_tokenize(checkout: Path) -> None:
    lines = (
        'data_name=pairs output_dir=o original_image_key="source image" edit_instruction=text edited_image=e '
        "image_area=65536 split=dev; CoT_keys=(x y); . ./scripts/tokenize.sh --limit 3"
    )
    called = source(checkout, lines).stdout.splitlines()[0]
    assert called == (
        "-m emu3.train_image_editing.prepare_data --dataset-name pairs --output-path o --split dev "
        "--original-image-key source image --edited-image e --edit-instruction text --image-area 65536 "
        "--CoT-keys x y --limit 3"
    )


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_hands_it_to_bash(checkout: Path) -> None:
    done = source(checkout, "export DATAPATH=a; . ./scripts/ie_sft.sh; echo ended $?", "zsh")
    assert "--train_data a" in done.stdout and done.stdout.splitlines()[-1] == "ended 7"


def test_two_machines_under_their_published_names(checkout: Path) -> None:
    """Guards WORLD_SIZE and RANK, which count machines in the published script and would be taken for a rank's own."""
    (checkout / ".venv/bin/python").write_text(
        '#!/bin/sh\necho "$NNODES $NODE_RANK ${WORLD_SIZE-none} ${RANK-none} $@"\n'
    )
    done = source(checkout, "export WORLD_SIZE=2 RANK=1; . ./scripts/ie_sft.sh")
    assert done.stdout.startswith("2 1 none none -m emu3.launch --ranks 1 ")
    assert " --gradient_accumulation_steps 16 " in done.stdout
    assert source(checkout, ". ./scripts/ie_sft.sh").stdout.startswith("1  none none -m")
