"""Reads and records the configuration of a run: a jsonnet file, `key=value` overrides, strict dataclasses.

A key that the dataclasses do not know is an error that names its nearest neighbour, a value of another type is an
error, and the resolved configuration is saved beside the run. Files compose by jsonnet's own `import`; environment
variables whose name begins with `APP__` are visible in them as `std.extVar('APP__...')`.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import hashlib
import json
import os
import re
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import _jsonnet

from emu3.checkpoint_facts import CheckpointFacts, read_facts
from emu3.errors import UserError, one_line
from emu3.extensions import source_digests
from emu3.flags import CommandParser
from emu3.run_folder import SettingsFile, flat
from emu3.settings import COUNT, number_in
from rl.config import Config, check_config, with_home
from rl.reward.viescore import prompts_from

FORMAT = 2
"""Of a run's config.json; 1 had no version."""
BEFORE_FORMAT_2 = {"objective.kl_gradient": "reference", "objective.min_known": 2, "objective.min_std": 0.0}
"""What runs computed before there were these keys, whose defaults are other ones."""
RENAMED = {"watch.pictures_every": "watch.images_every"}
"""Keys under their names of before, which are still read."""
DECISIVE = (
    *("model", "vision", "tokenizer", "seed", "data", "rollout", "objective", "optimizer", "lora", "reward"),
    "compute.product",
)
STAND_INS = {
    "APP__DATA_DIR": "DATA_DIR",
    "APP__BASE_EXP_DIR": "BASE_EXP_DIR",
    "APP__RUN_NAME": "RUN_NAME",
    "APP__REWARD_FUNCTION_API_BASE": "http://127.0.0.1:4877/v1",
}


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Evaluate a jsonnet file and apply `key=value` overrides (`optimizer.lr=1e-5`). Without the key `vision` it is the
    one that the checkpoint `model` names. Raises UserError."""
    if not path.is_file():
        raise UserError(f"config {path} does not exist")
    ext_vars = {name: value for name, value in os.environ.items() if name.startswith("APP__")}
    try:
        tree = json.loads(_jsonnet.evaluate_file(str(path), ext_vars=ext_vars))
    except UnicodeDecodeError as error:
        raise UserError(f"config {path} is not text in UTF-8: {one_line(error)}") from None
    except RuntimeError as error:
        if unset := re.search(r"undefined external variable: (\w+)", str(error)):
            raise UserError(
                f"config {path} needs the environment variable {unset[1]}: export {unset[1]}=..., or start it by "
                "scripts/rl.sh, which has defaults"
            ) from None
        raise UserError(f"config {path}: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"config {path}: expected an object of keys, got {type(tree).__name__}")
    for override in overrides:
        _override(tree, override)
    if tree.get("vision") is None and isinstance(tree.get("model"), str):
        facts = read_facts(tree["model"])
        named = facts.vision.name if facts is not None and facts.vision is not None else None
        tree = {key: value for key, value in tree.items() if key != "vision"} | ({"vision": named} if named else {})
    return build_config(tree)


def stand_in() -> None:
    """Set the variables of the shipped configs that are not set, for a command that reads none of what they name."""
    for name, value in STAND_INS.items():
        os.environ.setdefault(name, value)


def build_config(tree: dict[str, Any]) -> Config:
    """A `Config` from plain JSON values. Raises UserError for an unknown or missing key, a wrong type or range."""
    _rename(tree)
    config: Config = with_home(_build(Config, tree, ""))
    check_config(config)
    return config


def _rename(tree: dict[str, Any]) -> None:
    """Give keys that are called by an older name their present one, with a line on standard error."""
    for old, new in RENAMED.items():
        *parents, before = old.split(".")
        place: Any = tree
        for key in parents:
            place = place.get(key) if isinstance(place, dict) else None
        if isinstance(place, dict) and before in place:
            now = new.rpartition(".")[2]
            if now in place:
                raise UserError(f"config key {old} is the older name of {new}: give one of them")
            place[now] = place.pop(before)
            print(f"note: config key {old} is now called {new}", file=sys.stderr)


def inputs_of(config: Config, facts: CheckpointFacts, judge: str | None) -> dict[str, Any]:
    """Digests of what a run is made from, and who judges it (the name that the server gives) with which words."""
    from emu3.mllm.language_model import config_digest  # transformers, for which no `--help` waits
    from emu3.mllm.text_tokenizer import tokenizer_digest

    prompts = prompts_from(config.judge.prompts)
    return {
        "model": facts.trained_from and facts.trained_from.sha256,
        "config": config_digest(config.model),
        "vision": facts.vision and facts.vision.sha256,
        "tokenizer": tokenizer_digest(config.tokenizer or config.model),
        "data": [origin.sha256 for origin in facts.data],
        "judge": {
            "model": judge,
            "wording": hashlib.sha256(f"{prompts.edit}\0{prompts.quality}".encode()).hexdigest(),
        },
        **({"extensions": digests} if (digests := _digests(config)) else {}),
    }


def _digests(config: Config) -> dict[str, str]:
    """By the key that names it: a path has dots and would not be one."""
    names = {"objective": config.objective.own, "reward": config.reward.own, "wording": config.judge.prompts}
    return {key: digest for key, name in names.items() for digest in source_digests(name).values()}


def record_config(config: Config, path: Path, *, resuming: bool, inputs: Mapping[str, Any] | None = None) -> None:
    """Write the resolved config and the digests of its `inputs` as JSON.

    resuming: first refuse, by UserError, to change what decides the result, and say what changes about the judge. What
    a run of an older version did not know had its default; what its inputs were is not known.
    """
    settings = {**dataclasses.asdict(config), "inputs": dict(inputs or {})}
    if not resuming:
        path.unlink(missing_ok=True)
    _file(path).record(settings)


def refuse_another_run(config: Config, path: Path) -> None:
    """Raise UserError if the recorded config has other keys that decide the result; without a look at the inputs."""
    dataclasses.replace(_file(path), decisive=DECISIVE, said=()).check(dataclasses.asdict(config))


def _file(path: Path) -> SettingsFile:
    said = (*(f"judge.{name}" for name in ("model", "prompts", "image_format", "temperature", "max_tokens")), "inputs")
    return SettingsFile(
        path,
        version=FORMAT,
        remedy="choose another run_name, or the old value to continue that run",
        decisive=(
            *(*DECISIVE, "inputs.model", "inputs.config", "inputs.vision", "inputs.tokenizer", "inputs.data"),
            *("inputs.extensions.objective", "inputs.extensions.reward"),
        ),
        said=said,
        later={**flat(_defaults(Config)), **BEFORE_FORMAT_2},
        unknown=("inputs",),
    )


def _defaults(cls: type) -> dict[str, Any]:
    """Of the keys that have one, nested."""
    found: dict[str, Any] = {}
    for item in dataclasses.fields(cls):
        if item.default_factory is not MISSING:
            found[item.name] = _defaults(item.default_factory)  # type: ignore[arg-type]  # a dataclass
        elif item.default is not MISSING:
            found[item.name] = item.default
    return found


def _override(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"override {override!r}: expected key=value")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    *parents, last = path.split(".")
    for key in parents:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise UserError(f"override {override!r}: {key} has no keys of its own")
    tree[last] = value


def _build(cls: type, tree: dict[str, Any], where: str) -> Any:
    fields = {item.name: item for item in dataclasses.fields(cls)}
    hints = get_type_hints(cls)
    for key in tree:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0.0)[0]
            raise UserError(f"unknown config key {where}{key}; the nearest known key is {where}{near}")
    for name, item in fields.items():
        if name not in tree and item.default is MISSING and item.default_factory is MISSING:
            raise UserError(f"config key {where}{name} is missing")
    return cls(**{key: _value(hints[key], value, f"{where}{key}") for key, value in tree.items()})


def _value(hint: Any, value: Any, name: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value in ("None", "none", "Null", "NULL", ""):
            raise UserError(f"config key {name}: write {name}=null for none, got {value!r}")
        return None if value is None else _value(arguments[0], value, name)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        assert isinstance(hint, type)
        return _build(hint, value, f"{name}.")
    if origin is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], item, f"{name}[{index}]") for index, item in enumerate(value))
    if origin is Literal and value in arguments:
        return value
    if hint is float and type(value) is int:
        return float(value)
    if origin is None and type(value) is hint:
        return value
    raise UserError(f"config key {name}: expected {_expected(hint)}, got {value!r}{_as_written(hint, value, name)}")


def _expected(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    return getattr(hint, "__name__", str(hint))


def _as_written(hint: Any, value: Any, name: str) -> str:
    """How to write what was probably meant, as an override; empty where nobody knows."""
    meant: Any = None
    if hint is int and isinstance(value, float) and value.is_integer():
        meant = int(value)
    elif hint is bool and str(value).lower() in ("true", "false", "yes", "no", "on", "off", "1", "0"):
        meant = str(value).lower() in ("true", "yes", "on", "1")
    elif hint in (int, float) and isinstance(value, str):
        meant = 1000 if hint is int else 0.001
    elif get_origin(hint) is tuple:
        meant = [value] if isinstance(value, str) else ["a", "b"]
    return "" if meant is None else f"; write {name}={json.dumps(meant)}"


def add_run(parser: CommandParser) -> CommandParser:
    """A run's config file and overrides, as `rl.train` and `rl.watch.estimate` take them."""
    parser.add_argument("config", type=Path, help="jsonnet file, for example rl/configs/shapes.jsonnet")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as optimizer.lr=1e-5; docs/config.md has all"
    )
    return parser


def train_arguments() -> argparse.Namespace:
    """Of `rl.train`."""
    return add_run(CommandParser(description="GRPO with a judge's score; see rl/README.md")).parse_args()


def estimate_arguments() -> argparse.Namespace:
    """Of `rl.watch.estimate`."""
    parser = add_run(CommandParser(description="Estimate memory and time of a run."))
    parser.add_argument("--ranks", type=COUNT, default=1, help="processes, one for each GPU")
    parser.add_argument(
        "--device-memory",
        type=number_in(float, above=0, most=1e6),
        metavar="GB",
        help="of each GPU (default: this machine's device)",
    )
    parser.add_argument("--device", default="GPU", help="its name, for the time, such as H100; with --device-memory")
    parser.add_argument("--prompt-tokens", type=COUNT, help="of a prompt (default: those of the published models)")
    parser.add_argument(
        *("--completion-tokens", "--answer-tokens"),
        type=COUNT,
        help="of a completion, thinking included (default: of the published models, and the longest chain of thought)",
    )
    return parser.parse_intermixed_args()
