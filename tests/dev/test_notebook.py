"""docs/notebooks: clean, and of names and flags that there are. `.ci/release notebook` runs it."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(ROOT.glob("docs/notebooks/*.ipynb"))
TRAINER_FLAGS = {"max_steps", "per_device_train_batch_size", "learning_rate", "warmup_steps", "use_cpu"}
TRAINER_FLAGS |= {"logging_steps", "output_dir"}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.name)
def cells(request: pytest.FixtureRequest) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(request.param.read_text(encoding="utf-8"))["cells"]
    return found


def code(cells: list[dict[str, object]]) -> ast.Module:
    return ast.parse("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))  # type: ignore[arg-type]


def test_there_is_one() -> None:
    assert [path.name for path in NOTEBOOKS] == ["edit.ipynb"]


def test_it_has_no_outputs(cells: list[dict[str, object]]) -> None:
    """Images of one machine in every clone, and a change of them in every commit."""
    for cell in cells:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


def test_its_commands_and_flags_are_there(cells: list[dict[str, object]]) -> None:
    """A module that moved or a flag that was renamed would be met minutes after the start."""
    calls = [node for node in ast.walk(code(cells)) if isinstance(node, ast.Call)]
    commands = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "run"]
    assert len(commands) >= 4
    for call in commands:
        [name] = [word.value for word in call.args if isinstance(word, ast.Constant)]
        spec = importlib.util.find_spec(str(name))
        assert spec is not None and spec.origin is not None, name
        source = Path(spec.origin).read_text() + "".join(
            (ROOT / f"emu3/train_image_editing/{name}.py").read_text() for name in ("commands", "arguments")
        )
        for flag in call.keywords:
            words = (f'"--{str(flag.arg).replace("_", "-")}"', f"    {flag.arg}: ", f'"{flag.arg}"')
            # Of shapes.write_data sizes are flags by their fields.
            assert flag.arg in TRAINER_FLAGS or any(word in source for word in words), (name, flag.arg)


def test_what_it_imports_is_there(cells: list[dict[str, object]]) -> None:
    for node in ast.walk(code(cells)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("emu3", "shapes"):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
