"""Our own models as chosen editors: plain, with a chain of thought, best of n.

The model's code, which takes seconds to import, comes with the model: a run that is finished needs neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from baselines.editors.device import local_device
from baselines.editors.names import EMU3
from baselines.editors.options import ChosenEditor, EditorOptions
from baselines.editors.protocol import Predictor, seen_by
from baselines.results.provenance import identity
from emu3.errors import UserError
from emu3.hub import SAFE_FILES, SMALL_FILES, local_folder
from rl.reward.config import DEFAULT
from rl.reward.metrics import VieScore, prompts_from

TEMPERATURE, TOP_K = 1.0, 2048  # as published
# Bounds what is lost when a run ends, not the memory: `Editor` takes its own portions.
BATCH_SIZE = 64


def choose_emu3(options: EditorOptions, image_area: int) -> ChosenEditor:
    """Raises `UserError` for options that cannot be, and for weights that cannot be had."""
    if options.model is None:
        raise UserError(f"editor {EMU3} needs --model")
    model, best_of = options.model, options.best_of or 1
    temperature = TEMPERATURE if options.temperature is None else options.temperature
    top_k = TOP_K if options.top_k is None else options.top_k
    engine = options.engine or "local"
    if temperature < 0 or top_k < 0 or best_of < 1:
        raise UserError(f"temperature and top-k are 0 or more, best-of 1 or more: {temperature}, {top_k}, {best_of}")
    judge = options.judge
    if best_of > 1 and (judge is None or not judge.base_url or judge.model is None):
        raise UserError("--best-of needs a judge that picks: --judge-url and --judge-model")
    if best_of == 1 and judge is not None:
        raise UserError("a judge picks among several edits: --best-of 2 or more, or nothing about a judge")
    prompts = prompts_from(judge.prompts if judge else None)
    device = local_device()

    # A part that is not named is inside the model, and in its fingerprint.
    parts: dict[str, tuple[str | None, tuple[str, ...]]] = {
        "model": (model, SAFE_FILES),
        "vision": (options.vision, SAFE_FILES),
        "tokenizer": (options.tokenizer, SMALL_FILES),
    }
    settings = {
        "weights": {
            part: identity(name, local_folder(name, files), files) for part, (name, files) in parts.items() if name
        },
        "temperature": temperature,
        "top_k": top_k,
        "engine": engine,
        "think": options.think,
        "best_of": best_of,
        "device": device.type,
    }
    if judge is not None:
        wording = hashlib.sha256(f"{prompts.edit}\0{prompts.quality}".encode()).hexdigest()
        settings |= {"picked_by": judge.model, "prompts": wording}
        if changed := judge.changed(DEFAULT):
            settings["picked_with"] = changed

    @contextmanager
    def load() -> Iterator[Predictor]:
        from baselines.editors.emu3 import Emu3Editor
        from emu3.mllm.editor import Editor

        editor = Emu3Editor(
            Editor.from_pretrained(model, options.vision, options.tokenizer, device, engine=engine),
            temperature=temperature,
            top_k=top_k or None,
            think=options.think,
            image_area=image_area,
        )
        if judge is None:
            yield seen_by(editor, name)
        else:
            from baselines.editors.best_of import BestOf
            from rl.reward.client import Judge
            from rl.reward.scorer import Scorer

            with Scorer(VieScore(Judge(judge), prompts)) as scorer:
                yield seen_by(BestOf(editor, best_of, scorer), name)

    name = model + (" think" if options.think else "") + (f" best of {best_of}" if best_of > 1 else "")
    return ChosenEditor(EMU3, name, settings, BATCH_SIZE, False, load)
