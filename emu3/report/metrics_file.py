"""Where a run's metrics go: `metrics.jsonl`, and wandb or trackio beside it.

The file has one JSON object per line, each of a step, appended as the run goes.

The file continues over a resume: the run first cuts it back to the steps that it keeps, so it reads like the file of a
run that was never interrupted (but for its seconds). Here is as well what a run does when this file, or another
that only shows it, cannot be written (`Spared`).

wandb and trackio, for those who watch many runs at once, both have the interface that wandb began; they differ in what
names a run: wandb has ids, trackio takes the name. A run that is started again continues its curves there. Neither
forgets: of steps that are done again after a crash wandb keeps the first values, trackio both; `metrics.jsonl` is the
one that reads like an uninterrupted run.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from emu3.errors import UserError, one_line
from emu3.files import read_json, whole_file, write_json
from emu3.run_folder import VERSION, check_version, flat

NAME = "metrics.jsonl"
TRACKER, TRACKER_FORMAT = "tracker.json", 2


class MetricsFile:
    """The file in the folder `run`, which then holds `lines` alone; what is appended joins them in `self.lines`."""

    def __init__(self, run: Path, lines: Iterable[dict[str, Any]]) -> None:
        self._path = run / NAME
        self._waiting = b""
        self.lines = list(lines)
        self._begun = False
        with suppress(OSError):  # the first line that is appended tries again, and says what is wrong
            self._begin()

    def _begin(self) -> None:
        with whole_file(self._path) as temporary:
            temporary.write_text("".join(map(_dumped, self.lines)), encoding="utf-8")
        self._begun, self._waiting = True, b""

    def append(self, line: dict[str, Any]) -> None:
        """Write a line, after those that could not be written before.

        Raises OSError if it cannot be written; the file then ends with its last whole line, and the next call tries
        again. Raises ValueError for a number that is not finite; such a line is not taken.
        """
        text = _dumped(line).encode()
        self.lines.append(line)
        if not self._begun:
            self._begin()
            return
        self._waiting += text
        end = None
        try:
            with self._path.open("ab") as file:
                end = file.tell()
                file.write(self._waiting)
        except OSError:
            if end is not None:
                with suppress(OSError):
                    os.truncate(self._path, end)
            raise
        self._waiting = b""


def read_lines(run: Path) -> list[dict[str, Any]]:
    """The lines of a run, in order of their steps. A last line without an end, of a run that is writing or was killed
    while it wrote, is left out. Raises UserError if there is no such file or another line is no step's."""
    path = run / NAME
    try:
        text = path.read_text(encoding="utf-8", errors="replace")  # a line that is no text is no JSON either
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: {run} is no folder of a run, or of one that has done no step"
        ) from None
    lines = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            lines.append(json.loads(line))
            int(lines[-1]["step"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise UserError(f"{path}, line {number}: not a JSON object with a step") from None
    return lines


def lines_before(run: Path, start: float) -> list[dict[str, Any]]:
    """The lines of the steps before `start`; none if the run has no file yet."""
    return [line for line in read_lines(run) if line["step"] < start] if (run / NAME).is_file() else []


def refuse_another_command(run: Path, settings: str) -> None:
    """Raise UserError if `run` holds another command's training, whose lines would be lost: lines, and no `settings`,
    the file that each training of this command has beside them."""
    if (run / NAME).is_file() and (run / NAME).stat().st_size and not (run / settings).exists():
        raise UserError(f"{run} holds a training of another command, without {settings}: choose another folder")


class Spared:
    """Outputs that only show a run. Trouble with one of them is said once, on standard error, and the run goes on."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    @contextmanager
    def output(self, name: str, *more: type[Exception]) -> Iterator[None]:
        """Around the writing of `name`. Only OSError (a full disk) and UserError (an unreadable file) are caught, and
        `more`."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, (OSError, UserError, *more)):
                raise
            if name not in self._said:
                self._said.add(name)
                with suppress(OSError):  # standard error may go to the same full disk
                    print(f"warning: no {name}: {_said(error)}; the run goes on", file=sys.stderr, flush=True)


def shown_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their path for a page or a tracker: those that are set, without user and password in addresses."""
    return {
        name: re.sub(r"//[^/\s]*@", "//", value) if isinstance(value, str) else value
        for name, value in flat(settings).items()
        if value not in (None, {})
    }


class Tracker:
    """A run in `wandb` or `trackio`, whichever is the module's `name`; it has to be installed.

    run: the run's folder, whose own the tracker's run is: two folders of one name are two runs there. settings: of the
    run, nested; shown there without the secrets in their addresses. Raises UserError if the tracker cannot begin (no
    login, no network); the message names `option`, which chose it. Later troubles of a tracker cost its curves alone.
    """

    def __init__(
        self, name: str, project: str, run: Path, run_name: str, settings: Mapping[str, Any], option: str
    ) -> None:
        self._module = importlib.import_module(name)
        self._spared = Spared()
        identity = tracker_id(run, run_name)
        try:
            self._module.init(
                project=project,
                name=run_name if name == "wandb" else identity,  # trackio knows a run by its name
                resume="allow",
                config=shown_settings(settings),
                **({"id": identity} if name == "wandb" else {}),
            )
        except Exception as error:  # their errors have no common class
            raise UserError(
                f"{option}={name} could not begin: {type(error).__name__}: {one_line(error)}; "
                f"log in to it, or set {option}=null"
            ) from error

    def log(self, metrics: Mapping[str, Any], image: Path | None) -> None:
        """A step's line, with the grid of images that was drawn for it."""
        values = {name: value for name, value in flat(metrics, "/").items() if name != "step" and value is not None}
        with self._spared.output("line in the tracker", Exception):
            if image is not None:
                values["pictures"] = self._module.Image(str(image))
            self._module.log(values, step=metrics["step"])

    def close(self) -> None:
        with self._spared.output("end of the tracker's run", Exception):
            self._module.finish()


def tracker_id(run: Path, run_name: str) -> str:
    """What a tracker calls the run in this folder: the name and a random part, kept in the folder. A run that was begun
    before there was such a file goes on under its name."""
    file = run / TRACKER
    if file.is_file():
        found = read_json(file)
        check_version(file, found, TRACKER_FORMAT)
        return str(found["id"])
    begun = bool(lines_before(run, math.inf))
    identity = run_name if begun else f"{re.sub(r'[^A-Za-z0-9_.-]', '-', run_name)}-{secrets.token_hex(4)}"
    write_json(file, {VERSION: TRACKER_FORMAT, "id": identity})
    return identity


def _dumped(line: Mapping[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


def _said(error: Exception) -> str:
    name = "" if isinstance(error, (OSError, UserError)) else f"{type(error).__name__}: "
    return f"{name}{one_line(error)}"
