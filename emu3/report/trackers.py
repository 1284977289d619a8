"""The same metrics in wandb or trackio, for those who watch many runs at once.

Both have the interface that wandb began; they differ in what names a run: wandb has ids, trackio takes the name. A run
that is started again continues its curves there. Neither forgets: of steps that are done again after a crash wandb
keeps the first values, trackio both; `metrics.jsonl` is the one that reads like an uninterrupted run.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emu3.errors import UserError, one_line
from emu3.report.metrics_file import flat, without_secrets


class Tracker:
    """A run in `wandb` or `trackio`, whichever is the module's `name`; it has to be installed.

    settings: of the run, nested; shown there without the secrets in their addresses. Raises UserError if the tracker
    cannot begin (no login, no network); the message names `option`, which chose it.
    """

    def __init__(self, name: str, project: str, run_name: str, settings: Mapping[str, Any], option: str) -> None:
        self._module = importlib.import_module(name)
        identity = {"id": run_name} if name == "wandb" else {}
        try:
            self._module.init(
                project=project,
                name=run_name,
                resume="allow",
                config=without_secrets(flat(settings, ".")),
                **identity,
            )
        except Exception as error:  # their errors have no common class
            raise UserError(
                f"{option}={name} could not begin: {type(error).__name__}: {one_line(error)}; "
                f"log in to it, or set {option}=null"
            ) from error

    def log(self, metrics: Mapping[str, Any], picture: Path | None) -> None:
        """A step's line, with the grid of images that was drawn for it."""
        values: dict[str, Any] = {name: value for name, value in flat(metrics, "/").items() if name != "step"}
        if picture is not None:
            values["pictures"] = self._module.Image(str(picture))
        self._module.log(values, step=metrics["step"])

    def close(self) -> None:
        self._module.finish()
