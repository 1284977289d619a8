"""Reads and records the configuration of a run: a jsonnet file, `key=value` overrides, strict dataclasses.

A key that the dataclasses do not know is an error that names its nearest neighbour, a value of another type is an
error, and the resolved configuration is saved beside the run. Files compose by jsonnet's own `import`; environment
variables whose name begins with `APP__` are visible in them as `std.extVar('APP__...')`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import types
from collections.abc import Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import _jsonnet

from emu3.checkpoint_facts import read_facts
from emu3.errors import UserError
from emu3.files import read_json, write_json
from rl.config import Config, check_ranges

DECISIVE = ("model", "vision", "tokenizer", "seed", "data", "rollout", "objective", "optimizer", "lora", "reward")
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
    config: Config = _build(Config, tree, "")
    check_ranges(config)
    return config


def record_config(config: Config, path: Path, *, resuming: bool) -> None:
    """Write the resolved config as JSON. resuming: first refuse, by UserError, to change what decides the result."""
    resolved = dataclasses.asdict(config)
    if resuming:
        before = read_json(path)
        for key in DECISIVE:
            # Through JSON, which has lists for tuples.
            if before.get(key) != json.loads(json.dumps(resolved[key])):
                raise UserError(
                    f"{path} belongs to a run with {key}={json.dumps(before.get(key))}, now it is "
                    f"{json.dumps(resolved[key])}: choose another run_name, or the old value to continue that run"
                )
    write_json(path, resolved)


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
    expected = " or ".join(map(repr, arguments)) if origin is Literal else getattr(hint, "__name__", str(hint))
    raise UserError(f"config key {name}: expected {expected}, got {value!r}")
