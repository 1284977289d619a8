"""Every import of our own, the lazy ones too, names a module and a name that are there.

mypy passes over modules that it does not find, since some libraries have no types; and what is imported where it is
used, on GPUs for example, no other test may come to.
"""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OWN = ("emu3", "rl", "baselines", "shapes", "dev")
FILES = sorted(path for package in OWN for path in (ROOT / package).rglob("*.py"))


@lru_cache
def names_in(module: str) -> frozenset[str] | None:
    """What can be imported from a module of ours, None if there is none."""
    place = ROOT / module.replace(".", "/")
    source = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
    if not source.is_file():
        return None
    found = {path.stem for path in place.glob("*.py")} | {path.name for path in place.glob("*/") if path.is_dir()}
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return frozenset(found)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_is_imported_is_there(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in OWN:
            names = names_in(node.module)
            assert names is not None, f"line {node.lineno}: {node.module}"
            for alias in node.names:
                assert alias.name in names, f"line {node.lineno}: {node.module}.{alias.name}"
