"""Our own models: plain, with a chain of thought, or the best of n edits.

They are sampled as published: one sample, temperature 1, top-k 2,048, no classifier-free guidance. The model's code,
which takes seconds to import, comes with the model: a run that is finished needs neither.

Best of n keeps, of n edits of an image, the one that a judge scores highest (the paper's Table 11 has n = 5). How the
paper's pick was made is not said. Here it is VIEScore's overall score by a named judge, on the images as the evaluation
shows them; of equal scores the first wins. Where the same judge evaluates afterwards, its luck counts twice: use
another one, or read the score as an upper bound. An edit with a reply that holds no score is never picked, and stays in
the record as None. Where the judge could not be asked, the sample has no image at all and is made again by the next
run: a best of four is not a best of five.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from baselines.editors.editing import (
    EMU3,
    ChosenEditor,
    Edited,
    EditorOptions,
    EditResult,
    NoImage,
    SourceFrame,
    local_device,
)
from baselines.results.records import identity
from emu3.checkpoint_facts import setup_of
from emu3.errors import UserError
from emu3.hub import SAFE_FILES, SMALL_FILES, local_folder
from emu3.mllm.layout import THINK_TOKENS
from rl.reward.config import DEFAULT, JudgeConfig
from rl.reward.scores import Outcome, Score, Unavailable
from rl.reward.viescore import EditPrompts, VieScore, prompts_from

if TYPE_CHECKING:
    from emu3.mllm.editor import Editor, Think
    from rl.reward.scorer import Scorer

TEMPERATURE, TOP_K = 1.0, 2048  # as published
# Bounds what is lost when a run ends, not the memory: `Editor` takes its own portions.
BATCH_SIZE = 64


class Emu3Editor:
    """A loaded model as an `ImageEditor`. The images go in at `image_area` pixels and come out at that size.

    top_k: None draws among all codes. think: write a chain of thought of at most `think_tokens` before each image, or
    "mixed": let the model decide. scorer: makes `best_of` edits
    of each image and keeps the one that it likes best; without one, `best_of` is 1.
    """

    def __init__(
        self,
        editor: Editor,
        *,
        temperature: float,
        top_k: int | None,
        think: Think,
        think_tokens: int,
        image_area: int,
        best_of: int = 1,
        scorer: Scorer | None = None,
    ) -> None:
        self._editor = editor
        self._temperature = temperature
        self._top_k = top_k
        self._think: Think = think
        self._think_tokens = think_tokens
        self._image_area = image_area
        self._best_of = best_of
        self._scorer = scorer

    def edit(self, images: Sequence[Image.Image], instructions: Sequence[str], seed: int) -> list[EditResult]:
        groups = self._editor.edit(
            images,
            instructions,
            n=self._best_of,
            temperature=self._temperature,
            top_k=self._top_k,
            seed=seed,
            think=self._think,
            think_tokens=self._think_tokens,
            image_area=self._image_area,
        )
        candidates = [[Edited(edit.image, edit.reasoning, cut=edit.cut) for edit in group] for group in groups]
        if self._scorer is None:
            return [edit for [edit] in candidates]
        shown = [SourceFrame(image, self._image_area).shown for image in images]
        pending = [
            [self._scorer.submit(instruction, source, candidate.image) for candidate in group]
            for instruction, source, group in zip(instructions, shown, candidates, strict=True)
        ]
        return [
            pick(group, [future.result() for future in futures])
            for group, futures in zip(candidates, pending, strict=True)
        ]


def pick(candidates: Sequence[Edited], outcomes: Sequence[Outcome]) -> EditResult:
    """The candidate with the highest score, with all scores; or why there is none."""
    for outcome in outcomes:
        if isinstance(outcome, Unavailable):
            return NoImage(f"the judge scored not all of {len(candidates)} edits: {outcome.reason}")
    scores = tuple(outcome.value if isinstance(outcome, Score) else None for outcome in outcomes)
    scored = [(score, -place) for place, score in enumerate(scores) if score is not None]
    if not scored:
        return NoImage(f"none of the judge's replies about {len(candidates)} edits holds a score")
    chosen = candidates[-max(scored)[1]]
    return replace(chosen, candidates=scores)


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
    if options.think and options.mixed:
        raise UserError("--think and --mixed exclude each other: give one of them")
    thinks = options.think or options.mixed
    if options.think_tokens is not None and (options.think_tokens < 1 or not thinks):
        raise UserError(f"--think-tokens is 1 or more, with --think or --mixed: {options.think_tokens}")
    think_tokens = THINK_TOKENS if options.think_tokens is None else options.think_tokens
    judge = options.judge
    if best_of > 1 and (judge is None or not judge.base_url or judge.model is None):
        raise UserError("--best-of needs a judge that picks: --judge-url and --judge-model")
    if best_of == 1 and judge is not None:
        raise UserError("a judge picks among several edits: --best-of 2 or more, or nothing about a judge")
    prompts = prompts_from(judge.prompts if judge else None)
    device = local_device()
    setup = setup_of(model, options.vision, image_area)

    # A part that is not named is inside the model, and in its fingerprint.
    parts: dict[str, tuple[str | None, tuple[str, ...]]] = {
        "model": (model, SAFE_FILES),
        "vision": (setup.vision, SAFE_FILES),
        "tokenizer": (options.tokenizer, SMALL_FILES),
    }
    settings: dict[str, Any] = {
        "weights": {
            part: identity(name, local_folder(name, files), files) for part, (name, files) in parts.items() if name
        },
        "temperature": temperature,
        "top_k": top_k,
        "engine": engine,
        "think": options.think,
        **({"mixed": True} if options.mixed else {}),
        **({"think_tokens": think_tokens} if thinks else {}),
        "best_of": best_of,
        "device": device.type,
    }
    if options.quantization is not None:
        settings["quantization"] = options.quantization
    if judge is not None:
        wording = hashlib.sha256(f"{prompts.edit}\0{prompts.quality}".encode()).hexdigest()
        settings |= {"picked_by": judge.model, "prompts": wording}
        if changed := judge.changed(DEFAULT):
            settings["picked_with"] = changed

    @contextmanager
    def load() -> Iterator[Emu3Editor]:
        from emu3.mllm.editor import Editor

        editor = Editor.from_pretrained(
            model, setup.vision, options.tokenizer, device, engine=engine, quantization=options.quantization
        )
        with nullcontext() if judge is None else _scorer(judge, prompts) as scorer:
            yield Emu3Editor(
                editor,
                temperature=temperature,
                top_k=top_k or None,
                think="mixed" if options.mixed else options.think,
                think_tokens=think_tokens,
                image_area=image_area,
                best_of=best_of,
                scorer=scorer,
            )

    name = model + (" think" if options.think else " mixed" if options.mixed else "")
    name += f" best of {best_of}" if best_of > 1 else ""
    name += f" {options.quantization}" if options.quantization else ""
    return ChosenEditor(EMU3, name, settings, BATCH_SIZE, False, load)


def _scorer(judge: JudgeConfig, prompts: EditPrompts) -> Scorer:
    """VIEScore by `judge`, for `with`."""
    from rl.reward.client import Judge
    from rl.reward.scorer import Scorer

    return Scorer(VieScore(Judge(judge), prompts))
