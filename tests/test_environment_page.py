"""docs/environment.md names every variable that the source reads or sets by name."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def variables(source: str) -> set[str]:
    """Constant keys of `os.environ`: subscripts, `get`, `pop`, `setdefault`, `in`, and `os.getenv`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        key: ast.expr | None = None
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
            key = node.slice
        elif isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Attribute):
            if ast.unparse(node.func) == "os.getenv" or ast.unparse(node.func.value) in ("os.environ", "environment"):
                key = node.args[0]
        elif isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]) == "os.environ":
            key = node.left
        if isinstance(key, ast.Constant) and isinstance(key.value, str) and key.value.isupper():
            found.add(key.value)
    return found


def test_the_reader_of_the_source_finds_them() -> None:
    source = (
        'os.environ["A"]; os.environ.get("B"); "C" in os.environ; os.getenv("D"); environment.get("E", ""); {}["F"]'
    )
    assert variables(source) == set("ABCDE")


def test_every_variable_is_on_the_page() -> None:
    """Guards a variable that changes what a command does and that nobody knows of."""
    page = (ROOT / "docs/environment.md").read_text(encoding="utf-8")
    for package in ("emu3", "rl", "baselines", "shapes"):
        for path in (ROOT / package).rglob("*.py"):
            for name in variables(path.read_text(encoding="utf-8")):
                assert f"`{name}`" in page, f"{path.relative_to(ROOT)}: {name}"
