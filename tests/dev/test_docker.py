"""The Dockerfiles, held without an engine: linted, pinned, run as nobody of importance, of files that there are."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from shapes.command_line import COMMANDS

ROOT = Path(__file__).parents[2]
FILES = sorted(ROOT.glob("docker/*.Dockerfile"))


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def instructions(request: pytest.FixtureRequest) -> list[tuple[str, str]]:
    """Word and rest of each, continued lines joined."""
    text = request.param.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def rests(instructions: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for found, rest in instructions if found == word]


def test_there_are_two() -> None:
    assert [path.name for path in FILES] == ["cpu.Dockerfile", "cuda.Dockerfile"]


def test_the_linter_has_nothing_to_say() -> None:
    program = shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed")
    found = subprocess.run([program, *map(str, FILES)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (found.returncode, found.stdout) == (0, "")


def test_the_base_is_one_version(instructions: list[tuple[str, str]]) -> None:
    """`latest`, and `3.11`, which moves on, would be another image tomorrow."""
    [base] = rests(instructions, "FROM")
    assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+-[\w.-]+", base)


def test_it_does_not_run_as_root_and_holds_no_secret(instructions: list[tuple[str, str]]) -> None:
    assert rests(instructions, "USER")[-1].isdecimal() and rests(instructions, "USER")[-1] != "0"
    named = " ".join([*rests(instructions, "ENV"), *rests(instructions, "ARG")]).upper()
    assert not re.search("KEY|TOKEN|SECRET|PASSWORD", named)


def test_what_is_copied_is_there_and_is_all_of_the_project(instructions: list[tuple[str, str]]) -> None:
    """A package that is missing from the image would be missed when a command first needs it."""
    sources = [name for rest in rests(instructions, "COPY") for name in rest.split()[:-1]]
    assert [name for name in sources if not (ROOT / name).exists()] == []
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = re.search(r"include = \[(.*?)\]", text)
    assert packages is not None
    assert {name.rstrip("*") for name in re.findall(r'"([^"]+)"', packages[1])} <= set(sources)
    extras = re.findall(r'"\.\[([\w,]+)\]"', " ".join(rests(instructions, "RUN")))
    assert extras and all(f"\n{extra} = [" in text for extra in extras[0].split(","))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_commands_at_its_head_are_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert f"docker build -f docker/{path.name} " in text
    commands = re.findall(r"docker run .*? earl-\w+ ([\w-]+(?:/[\w.]+)?)", text)
    assert commands and all(name in COMMANDS or (ROOT / name).is_file() for name in commands)
