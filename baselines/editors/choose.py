"""From what a person says on the command line to an editor: first its settings, later, if anything is to be done, it.

Settings come first because a run that is finished, or that has other settings, is told so without loading a model.
Every kind of editor takes its own options; one that it does not know is an error, not ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from baselines.editors.command import CommandEditor
from baselines.editors.fixed import NoEdit, finished_in, ground_truth
from baselines.editors.names import COMMAND, EMU3, FOLDER, GROUND_TRUTH, NO_EDIT, OMNIGEN
from baselines.editors.options import ChosenEditor, EditorOptions
from baselines.editors.protocol import ImageEditor, Predictor, seen_by
from emu3.errors import UserError

TIME_LIMIT = 600.0
"""Seconds that a command gets for one picture."""


def choose(kind: str, options: EditorOptions, image_area: int) -> ChosenEditor:
    """The editor `kind`, one of `EDITORS`; `image_area` is in pixels.

    Raises `UserError` for options that it does not take or that cannot be, and for weights that cannot be had.
    """
    options.check(kind)
    if kind == EMU3:
        from baselines.editors.choose_emu3 import choose_emu3

        return choose_emu3(options, image_area)
    if kind == COMMAND:
        return _command(options)
    if kind == FOLDER:
        return _folder(options)
    if kind in (NO_EDIT, GROUND_TRUTH):
        return _finished(kind, ground_truth if kind == GROUND_TRUTH else seen_by(NoEdit(), NO_EDIT))
    return _omnigen(options) if kind == OMNIGEN else _pix2pix(kind, options)


def _pix2pix(kind: str, options: EditorOptions) -> ChosenEditor:
    from baselines.editors import diffusers_parts, pix2pix

    diffusers_parts.require("diffusers")
    name, steps = options.model or pix2pix.MODELS[kind], _steps(options, pix2pix.STEPS)
    folder = diffusers_parts.pipeline_folder(name, pix2pix.PARTS, pix2pix.WEIGHTS)
    euler_ancestral = kind in pix2pix.EULER_ANCESTRAL
    settings = {
        "weights": {"model": diffusers_parts.identity(name, folder, pix2pix.PARTS)},
        "steps": steps,
        "guidance": pix2pix.GUIDANCE,
        "image_guidance": pix2pix.IMAGE_GUIDANCE,
        "scheduler": "EulerAncestralDiscreteScheduler" if euler_ancestral else "the checkpoint's",
    }
    return _on_device(
        kind,
        settings,
        batch_size=8,
        equal_sizes=True,
        make=lambda device: pix2pix.Pix2PixEditor(name, folder, euler_ancestral, steps, device),
    )


def _omnigen(options: EditorOptions) -> ChosenEditor:
    from baselines.editors import diffusers_parts, omnigen

    diffusers_parts.require("diffusers", "torchvision")
    name, steps = options.model or omnigen.MODEL, _steps(options, omnigen.STEPS)
    folder = diffusers_parts.pipeline_folder(name, omnigen.PARTS, omnigen.WEIGHTS)
    settings = {
        "weights": {"model": diffusers_parts.identity(name, folder, omnigen.PARTS)},
        "steps": steps,
        "guidance": omnigen.GUIDANCE,
        "image_guidance": omnigen.IMAGE_GUIDANCE,
        "side": omnigen.SIDE,
    }
    return _on_device(
        OMNIGEN,
        settings,
        batch_size=10,  # as published
        equal_sizes=False,
        make=lambda device: omnigen.OmniGenEditor(name, folder, steps, device),
    )


def _on_device(
    kind: str, settings: dict[str, Any], *, batch_size: int, equal_sizes: bool, make: Callable[[Any], ImageEditor]
) -> ChosenEditor:
    from baselines.editors.device import local_device

    device = local_device()

    def load() -> AbstractContextManager[Predictor]:
        return nullcontext(seen_by(make(device), kind))

    return ChosenEditor(kind, kind, {**settings, "device": device.type}, batch_size, equal_sizes, load)


def _command(options: EditorOptions) -> ChosenEditor:
    if options.command is None:
        raise UserError(f"editor {COMMAND} needs --command")
    editor = CommandEditor(options.command, options.time_limit or TIME_LIMIT)
    predictor = seen_by(editor, COMMAND)
    # One picture per batch: each is kept as soon as it is there.
    return ChosenEditor(COMMAND, COMMAND, {"command": options.command}, 1, False, lambda: nullcontext(predictor))


def _folder(options: EditorOptions) -> ChosenEditor:
    if options.pictures is None:
        raise UserError(f"editor {FOLDER} needs --pictures")
    return _finished(FOLDER, finished_in(options.pictures), Path(options.pictures).resolve().name)


def _finished(kind: str, predictor: Predictor, name: str | None = None) -> ChosenEditor:
    return ChosenEditor(kind, name or kind, {}, 64, False, lambda: nullcontext(predictor))


def _steps(options: EditorOptions, default: int) -> int:
    steps = default if options.steps is None else options.steps
    if steps < 1:
        raise UserError(f"steps are at least 1: {steps}")
    return steps
