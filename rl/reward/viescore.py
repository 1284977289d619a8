"""What scores an edited image: the questions that are put to a judge, and the scores that are made of its replies.

VIEScore (Ku et al., 2024, "VIEScore: Towards Explainable Metrics for Conditional Image Synthesis Evaluation") is the
reward and the metric of the paper. Two questions: SC shows the judge the instruction, the source and the edited image
and asks for edit success and overediting; PQ shows the edited image alone and asks for naturalness and artifacts. Every
part is 0 to 10, 10 being best. SC and PQ are the minima of their two parts, and the score is sqrt(SC * PQ).

GroundScore is how far an edited image shows what the dataset's own edit shows; in the paper's code it is off by
default. The judge sees the instruction, the dataset's edit and the image to be scored, in this order, and gives one
score for agreement in content. It does not see the source: the published server takes two images, and what was to be
done is in the dataset's edit. So the score is worth what the data's edits are worth; where these change more than the
instruction says, it rewards that. Ours is the wording, and the sampling settings are the judge's; the published ones
are 1,300 tokens at temperature 0.3.

A part is whatever number the model writes after its reasons; equal ones within a group are frequent, and such groups
teach nothing. An expected part is the mean under the probabilities of one token instead (`scores.mean_score`). It costs
one token, and hardly two images get the same. It is another reward than the written one: the model gives no reasons
before it, and it moves where the number that would be written does not. `ExpectedVieScore` is VIEScore's formula over
such parts, with a question of its own for each. It is not VIEScore, and the two do not go into one table: the minimum
of two means is not the mean of the minimum.

All questions give the instruction on a line of its own, `Editing instruction: <instruction>`, on which a judge that is
a program rather than a model can rely; so it can on the line `Grade: <name>` of the questions for a single score, which
stand in `prompts/` beside our wording of VIEScore's two. The wording that the published numbers were made with is its
authors' and is read from a checkout of their repository (TIGER-AI-Lab/VIEScore), not copied.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from PIL import Image

from emu3.errors import UserError
from emu3.extensions import is_extension, load_extension
from rl.reward.scores import Failure, Outcome, PartScore, Score, Unavailable, Unparsable, mean_score, parse_scores

if TYPE_CHECKING:  # who only reads the questions does not wait for the client
    from rl.reward.client import Judge

NAMES = ("edit_success", "overedit", "naturalness", "no_artifacts")
PARTS_NOTE = (
    "overedit: higher is better, 10 means that nothing was changed beyond the edit; sc is the lower of edit success "
    "and overedit, pq that of naturalness and no artifacts"
)
PLACEHOLDER = "<instruction>"
HOW_TO_GET_PROMPTS = "git clone https://github.com/TIGER-AI-Lab/VIEScore"
_CONTEXT = "context_no_delimit.txt"
Parser = Callable[[str, int], tuple[float, ...] | None]
"""Finds so many scores in a reply, or none."""


class Metric(Protocol):
    """Scores edited images by asking `judge`."""

    @property
    def judge(self) -> Judge: ...

    async def score(
        self, instruction: str, source: Image.Image, edited: Image.Image, target: Image.Image | None = None
    ) -> Outcome:
        """target: the dataset's own edit of `source`; only a metric that compares with it needs one."""
        ...


class VieScore:
    """Scores edited images by what `judge` replies to `prompts`. parse: finds the scores in a reply."""

    def __init__(self, judge: Judge, prompts: EditPrompts, parse: Parser = parse_scores) -> None:
        self.judge = judge
        self.prompts = prompts
        self._parse = parse

    async def score(
        self, instruction: str, source: Image.Image, edited: Image.Image, target: Image.Image | None = None
    ) -> Outcome:
        """As `viescore`. `target` is not looked at."""
        sc, pq = await asyncio.gather(
            written_scores(self.judge, self.prompts.edit_question(instruction), [source, edited], 2, self._parse),
            written_scores(self.judge, self.prompts.quality, [edited], 2, self._parse),
        )
        return viescore([*sc, *pq])


class ExpectedVieScore:
    """Scores edited images by how probable `judge` finds each score: four questions, a token each."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self._questions = [
            load_question(f"expected_{name}") for name in ("success", "restraint", "naturalness", "artifacts")
        ]

    async def score(
        self, instruction: str, source: Image.Image, edited: Image.Image, target: Image.Image | None = None
    ) -> Outcome:
        """As `viescore`. `target` is not looked at."""
        success, restraint, naturalness, artifacts = self._questions
        parts = await asyncio.gather(
            expected_score(self.judge, with_instruction(success, instruction), [source, edited]),
            expected_score(self.judge, with_instruction(restraint, instruction), [source, edited]),
            expected_score(self.judge, naturalness, [edited]),
            expected_score(self.judge, artifacts, [edited]),
        )
        return viescore(parts)


class GroundScore:
    """Scores edited images by what `judge` says about them beside the dataset's edit.

    expected: the score is the mean one under the probabilities of its token.
    """

    def __init__(self, judge: Judge, expected: bool = False) -> None:
        self.judge = judge
        self._expected = expected
        self._question = load_question("expected_agreement" if expected else "ground")

    async def score(
        self, instruction: str, source: Image.Image, edited: Image.Image, target: Image.Image | None = None
    ) -> Outcome:
        """`Score` with the part agreement, 0 to 10. `source` is not looked at. Raises ValueError without a target."""
        if target is None:
            raise ValueError("GroundScore needs the dataset's edit")
        question, images = with_instruction(self._question, instruction), [target, edited]
        if self._expected:
            agreement = await expected_score(self.judge, question, images)
        else:
            (agreement,) = await written_scores(self.judge, question, images, 1)
        return agreement if isinstance(agreement, Failure) else Score(agreement, {"agreement": agreement})


class WeightedMean:
    """Weighted mean of metrics, all of one judge: sum of w x / sum of w, so the scale stays 0 to 10.

    metrics: name, weight (more than 0) and metric. Each metric's parts go by `name/part`, its value by `name/value`.
    """

    def __init__(self, metrics: Sequence[tuple[str, float, Metric]]) -> None:
        self.judge = metrics[0][2].judge
        self._metrics = metrics

    async def score(
        self, instruction: str, source: Image.Image, edited: Image.Image, target: Image.Image | None = None
    ) -> Outcome:
        """A score, if every metric has one: without one of its parts the sum is unknown, not smaller."""
        outcomes = await asyncio.gather(
            *(metric.score(instruction, source, edited, target) for _, _, metric in self._metrics)
        )
        scores = [outcome for outcome in outcomes if isinstance(outcome, Score)]
        if len(scores) < len(outcomes):
            return min((outcome for outcome in outcomes if not isinstance(outcome, Score)), key=_hopes)
        total, weights = 0.0, 0.0
        parts: dict[str, float] = {}
        for (name, weight, _), score in zip(self._metrics, scores, strict=True):
            total += weight * score.value
            weights += weight
            parts |= {f"{name}/{part}": value for part, value in {"value": score.value, **score.parts}.items()}
        return Score(total / weights, parts)


def viescore(parts: Sequence[PartScore]) -> Outcome:
    """`Score` with the parts `NAMES`, sc and pq, all 0 to 10; or the first of the parts that is none.

    parts: four in the order of `NAMES`; fewer where a failure stands for the two of one question.
    """
    known: dict[str, float] = {}
    for name, part in zip(NAMES, parts, strict=False):
        if isinstance(part, Failure):
            return part
        known[name] = part
    known["sc"] = min(known["edit_success"], known["overedit"])
    known["pq"] = min(known["naturalness"], known["no_artifacts"])
    return Score(math.sqrt(known["sc"] * known["pq"]), known)


async def written_scores(
    judge: Judge, question: str, images: list[Image.Image], count: int, parse: Parser = parse_scores
) -> tuple[PartScore, ...]:
    """The `count` scores of the reply to `question`; one failure where they are missing."""
    reply = await judge.ask(question, images, lambda text: parse(text, count) is not None)
    if isinstance(reply, Unavailable):
        return (reply,)
    scores = None if reply.unusable else parse(reply, count)
    return scores or (Unparsable(reply, reply.reason),)


async def expected_score(judge: Judge, question: str, images: list[Image.Image]) -> PartScore:
    """The mean score of the reply to `question`, which asks for a digit."""
    reply = await judge.ask(question, images, lambda likeliest: mean_score(likeliest) is not None, one_token=True)
    if isinstance(reply, Unavailable):
        return reply
    score = mean_score(reply)
    return Unparsable(reply, reply.reason) if score is None else score


def _hopes(failure: Failure) -> int:
    """0 for a refusal, which asking again will not mend; 1 for an outage, which may end; 2 for a useless reply."""
    return (0 if failure.refused else 1) if isinstance(failure, Unavailable) else 2


@dataclass(frozen=True)
class EditPrompts:
    """edit: question about the source and the edited image (SC), holding `<instruction>`.
    quality: question about the edited image alone (PQ). verbatim: the instruction keeps its white space, as the
    published evaluation's did."""

    edit: str
    quality: str
    verbatim: bool = False

    def edit_question(self, instruction: str) -> str:
        """The SC question, `with_instruction` unless it is `verbatim`."""
        return (
            self.edit.replace(PLACEHOLDER, instruction) if self.verbatim else with_instruction(self.edit, instruction)
        )


def with_instruction(question: str, instruction: str) -> str:
    """The question about an edit. Runs of white space in the instruction, newlines too, become one space."""
    return question.replace(PLACEHOLDER, " ".join(instruction.split()))


def prompts_from(checkout: Path | str | None) -> EditPrompts:
    """The authors' wording from a checkout of their repository; one's own, an `EditPrompts` that is named as
    `emu3.extensions` says; ours without either. Raises UserError where there is none."""
    if is_extension(checkout):
        own: EditPrompts = load_extension(str(checkout), "the judge's wording", kind=EditPrompts)
        if PLACEHOLDER not in own.edit:
            raise UserError(f"the judge's wording {checkout}: `edit` has no place for the instruction ({PLACEHOLDER})")
        return own
    return load_prompts() if checkout is None else load_published_prompts(Path(checkout))


def load_prompts() -> EditPrompts:
    """Our wording of VIEScore's."""
    return EditPrompts(edit=load_question("edit"), quality=load_question("quality"))


def load_question(name: str) -> str:
    """A question of ours: `prompts/NAME.txt`."""
    return _read(Path(__file__).parent / "prompts" / f"{name}.txt")


def load_published_prompts(folder: Path) -> EditPrompts:
    """The authors' zero-shot wording for text-guided editing, parts joined by newlines as they do.

    folder: their checkout, or any folder in it. Raises `UserError` if the wording is not there.
    """
    raw = _published_texts(folder)
    context = _read(raw / _CONTEXT)
    shots = raw / "prompts_0shot"
    edit = "\n".join([context, _read(shots / "two_image_edit_rule.txt"), _read(shots / "tie_rule_SC.txt")])
    if PLACEHOLDER not in edit:
        raise UserError(f"{shots / 'tie_rule_SC.txt'} has no place for the instruction ({PLACEHOLDER})")
    return EditPrompts(edit, quality="\n".join([context, _read(shots / "rule_PQ.txt")]), verbatim=True)


def _published_texts(folder: Path) -> Path:
    """The folder of the texts, which is `viescore/prompts_raw` in the checkout that `folder` is or lies in."""
    near = folder.resolve()
    for place in (near, *near.parents[:4]):
        for inner in ("", "prompts_raw", "viescore/prompts_raw"):
            if (place / inner / _CONTEXT).is_file():
                return place / inner
    raise UserError(f"{folder} is no folder of a VIEScore checkout, none has {_CONTEXT}: {HOW_TO_GET_PROMPTS}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"judge prompt {path} cannot be read: {error.strerror}") from None
