"""The same figures in wandb or trackio, for those who watch many runs at once.

Both have the interface that wandb began; they differ in what names a run: wandb has ids, trackio takes the name. A run
that is started again continues its curves there. Neither forgets: of steps that are done again after a crash wandb
keeps the first figures, trackio both; `metrics.jsonl` is the one that reads like an uninterrupted run.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from emu3.errors import UserError, one_line
from rl.config import Config
from rl.metrics import tokens_per_second
from rl.watch.flat import flat, without_secrets


class Tracker(Protocol):
    """Where figures go besides the run's folder."""

    def log(self, metrics: Mapping[str, Any], picture: Path | None) -> None:
        """A step's line, with the grid of pictures that was drawn for it."""
        ...

    def close(self) -> None: ...


class Online:
    """wandb or trackio, as `module`; raises UserError if it cannot begin (no login, no network)."""

    def __init__(self, module: ModuleType, config: Config) -> None:
        self._module = module
        name = config.run_name
        identity = {"id": name} if module.__name__ == "wandb" else {}
        try:
            module.init(
                project=config.watch.project,
                name=name,
                resume="allow",
                config=without_secrets(flat(asdict(config), ".")),
                **identity,
            )
        except Exception as error:  # their errors have no common class
            raise UserError(
                f"watch.tracker={module.__name__} could not begin: {type(error).__name__}: {one_line(error)}; "
                f"log in to it, or set watch.tracker=null"
            ) from error

    def log(self, metrics: Mapping[str, Any], picture: Path | None) -> None:
        rates = {"tokens_per_second": tokens_per_second(metrics)}
        figures: dict[str, Any] = {
            name: value for name, value in flat(rates | dict(metrics), "/").items() if name != "step"
        }
        if picture is not None:
            figures["pictures"] = self._module.Image(str(picture))
        self._module.log(figures, step=metrics["step"])

    def close(self) -> None:
        self._module.finish()


def start_tracker(config: Config) -> Tracker | None:
    """The tracker that the config asks for, None if it asks for none. `rl.config` has checked that it is installed."""
    name = config.watch.tracker
    return None if name is None else Online(importlib.import_module(name), config)
