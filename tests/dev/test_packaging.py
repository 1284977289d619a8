"""What pip installs: all that the code opens, under our names alone, with bounds where there have to be some."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PACKAGES = ("emu3", "rl", "baselines", "shapes")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements() -> list[Requirement]:
    """Of all extras but those that only name other ones, and without a developer's own tools."""
    extras = {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name != "dev"}
    return [Requirement(line) for line in (*PROJECT["dependencies"], *(line for x in extras.values() for line in x))]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files in a wheel that is built from a copy of the tree: a build leaves folders in it."""
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("needs setuptools 77")
    tree = tmp_path_factory.mktemp("tree")
    for name in (*PACKAGES, "scripts", "docs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    command = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tree / "dist"), str(tree)]
    done = subprocess.run([sys.executable, "-m", "pip", *command], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    [file] = (tree / "dist").glob("*.whl")
    assert file.name.startswith("earl_image_editing-")
    return zipfile.ZipFile(file).namelist()


def test_it_takes_no_other_name(wheel: list[str]) -> None:
    """`tests`, `dev` or `scripts` in site-packages would stand before somebody else's."""
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.startswith("earl_image_editing-")} == set(PACKAGES)


def test_it_holds_every_file_of_the_packages(wheel: list[str]) -> None:
    """A config, a template or a prompt that is missing is missed by the first person without a checkout."""
    tracked = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    # Shell scripts in packages are stand-ins for a checkout's.
    kept = [name for name in tracked.splitlines() if not name.endswith((".md", ".sh")) and (ROOT / name).is_file()]
    assert len(kept) > 150 and [name for name in kept if name not in wheel] == []


def test_it_brings_scripts_and_templates(wheel: list[str]) -> None:
    shared = {name.split("/data/share/", 1)[1] for name in wheel if "/data/share/" in name}
    for folder, place in (("scripts", "scripts"), ("docs/templates", "templates")):
        for path in (ROOT / folder).iterdir():
            if path.is_file():
                assert f"earl-image-editing/{place}/{path.name}" in shared


def test_bounds_are_where_private_names_are_used() -> None:
    """CONTRIBUTING.md lists the libraries whose private names are used; the next version of one of these may lack them.
    A bound elsewhere only stands in the way."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("## Private doors") :]
    private = {line.split()[1].lower() for line in table.splitlines() if line.startswith("| ")} - {"name", "python"}
    assert len(private) >= 6
    for requirement in requirements():
        bounded = any(spec.operator in ("<", "==", "~=") for spec in requirement.specifier)
        assert bounded == (requirement.name.lower() in private), requirement


def test_the_tested_set_is_one_that_is_allowed() -> None:
    """requirements.txt once had a Pillow that the demo's own requirement ruled out."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert not any("/" in line or line.startswith("-") for line in lines if not line.startswith("#"))
    for requirement in requirements():
        if requirement.name in pins:
            assert requirement.specifier.contains(pins[requirement.name]), requirement
    core = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert core <= pins.keys()
    assert re.search(r"^torch==", "\n".join(lines), re.MULTILINE)


def test_it_says_which_python_it_is_tested_with() -> None:
    named = [line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if "Python ::" in line]
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert sorted(set(re.findall(r'python-version: "([\d.]+)"', workflow))) == sorted(named)
