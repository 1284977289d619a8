"""Every number has a range, and every key its line in docs/config.md."""

from __future__ import annotations

import argparse
import dataclasses
import re
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest

from dev.config_table import PAGE, page
from emu3.errors import UserError
from emu3.settings import COUNT, NUMBER, Number, check_numbers, number_in, setting
from emu3.train_image_editing.convert_published import ConvertArguments
from emu3.train_image_editing.prepare_data import PrepareArguments
from emu3.train_image_editing.sft import SftArguments
from rl.annotate.run import AnnotateArguments
from rl.config import Config
from rl.config_file import build_config

ROOT = Path(__file__).parents[2]
CONFIGS = (Config, SftArguments, PrepareArguments, ConvertArguments, AnnotateArguments)


def numbers_of(cls: type, prefix: str = "") -> dict[str, Any]:
    """Fields of a dataclass and of those in it that hold a number or several, by their paths."""
    found: dict[str, Any] = {}
    hints = get_type_hints(cls)
    for item in dataclasses.fields(cls):
        kinds = [hints[item.name]]
        while get_origin(kinds[0]) in (Union, types.UnionType, tuple, list):
            kinds = [kind for kind in get_args(kinds[0]) if kind not in (type(None), ...)]
        if dataclasses.is_dataclass(kinds[0]):
            found |= numbers_of(kinds[0], f"{prefix}{item.name}.")  # type: ignore[arg-type]
        elif kinds[0] in (int, float):
            found[prefix + item.name] = item
    return found


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda cls: cls.__name__)
def test_every_number_has_a_range(cls: type) -> None:
    """`judge.max_failed_share=20`, `objective.kl=NaN` and `optimizer.beta1=1.5` were accepted."""
    found = numbers_of(cls)
    assert found
    assert [name for name, item in found.items() if NUMBER not in item.metadata] == []


def test_every_flag_that_is_a_number_has_a_range() -> None:
    """`--requests-per-minute -1` waited for ever, `--seed` of 30 digits was a traceback. The judge's flags are checked
    with their dataclass."""
    files = [file for package in ("emu3", "rl", "baselines", "shapes") for file in (ROOT / package).rglob("*.py")]
    plain = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in files
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.search(r"(?<!d)type=(int|float)\b", line) and "add(" not in line and "judge_" not in line
    ]
    assert len(files) > 100 and plain == []


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400", "0", "-1", "2.5", "9" * 400, "x", ""])
def test_a_flag_out_of_its_range_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--it", type=number_in(float, above=0, most=2))
    parser.add_argument("--count", type=COUNT)
    for flag in ("--it", "--count"):
        with pytest.raises(SystemExit) as end:
            parser.parse_args([f"{flag}={text}"])
        assert end.value.code == 2 and f"argument {flag}: " in capsys.readouterr().err
    assert parser.parse_args(["--it", "2", "--count", "1"]) == argparse.Namespace(it=2.0, count=1)


def test_the_page_is_as_the_configs_are() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m dev.config_table writes it anew"
    for name in numbers_of(Config):
        assert f"| `{name}` |" in page()


BASE = {
    "run_name": "r", "output_dir": "o", "model": "m", "vision": "v", "data": {"sets": ["d"]},
    "judge": {"base_url": "http://h/v1"},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(numbers_of(Config)))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=["nan", "inf", "-inf"])
def test_nan_and_infinities_are_refused_everywhere(name: str, value: float) -> None:
    """NaN is below nothing and above nothing, so a bound alone lets it pass."""
    tree: dict[str, Any] = {**BASE, "data": dict(BASE["data"]), "judge": dict(BASE["judge"])}  # type: ignore[call-overload]
    *parents, last = name.split(".")
    place = tree
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = [value] if name == "data.coefficients" else value
    with pytest.raises(UserError, match=rf"config key {name}(\[0\])?: expected"):
        build_config(tree)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("judge.max_failed_share", 20, "at least 0 and at most 1, got 20"),
        ("objective.kl", float("nan"), "at least 0, got nan"),
        ("optimizer.beta1", 1.5, "at least 0 and less than 1, got 1.5"),
        ("optimizer.beta2", 1.0, "less than 1, got 1.0"),
        ("rollout.vllm.memory_share", 1.5, "at most 1, got 1.5"),
        ("objective.clip", -0.1, "at least 0"),
        ("rollout.temperature", 0.0, "more than 0"),
        ("judge.deadline", 0.0, "more than 0"),
        ("judge.pause_seconds", 1e30, "at most 1000000"),
        ("optimizer.eps", 0.0, "more than 0"),
        ("watch.report_every", -1, "at least 0"),
        ("compute.timeout", -5.0, "more than 0"),
    ],
)
def test_numbers_out_of_range_are_named(key: str, value: float, expected: str) -> None:
    section, _, rest = key.partition(".")
    tree: dict[str, Any] = {name: dict(part) if isinstance(part, dict) else part for name, part in BASE.items()}
    place = tree.setdefault(section, {})
    *parents, last = rest.split(".")
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    with pytest.raises(UserError) as refused:
        build_config(tree)
    assert str(refused.value).startswith(f"config key {key}: expected ") and expected in str(refused.value)


def test_a_range_in_words() -> None:
    assert str(Number(least=0, below=1)) == "at least 0 and less than 1"
    assert 0 in Number(least=0, below=1) and 1 not in Number(least=0, below=1)
    assert 0 not in Number(above=0) and float("inf") not in Number(above=0)


@dataclasses.dataclass(frozen=True)
class Some:
    share: float = setting("a share", 0.5, least=0, most=1)
    many: tuple[float, ...] | None = setting("shares", None, above=0)


def test_numbers_in_lists_and_none() -> None:
    check_numbers(Some(), str)
    check_numbers(Some(many=(1.0, 2.0)), str)
    with pytest.raises(UserError, match="--many: expected more than 0, got -1"):
        check_numbers(Some(many=(1.0, -1.0)), lambda name: f"--{name}")
