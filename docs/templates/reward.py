"""A reward of one's own: an EditScore model behind an OpenAI address, which reasons before it scores from 0 to 25.

    vllm serve EditScore/EditScore-7B --port 8001
    bash scripts/rl.sh rl/configs/earl.jsonnet reward.own=docs/templates/reward.py:EditScore reward.viescore=0 \
        judge.base_url=http://localhost:8001/v1 judge.temperature=0.7

A class of the judge that has `judge` and an asynchronous `score`. The judge asks, retries, counts and keeps replies; a
reply without a score is asked for again and in the end is no score, never a zero. The reward is 0 to 10.

EditScore (Luo et al., 2025, arXiv 2509.23909) puts VIEScore's two questions and takes sqrt(SC PQ), each the minimum of
two parts. It is trained on wording of its authors (VectorSpaceLab/EditScore): put that in place of this one, and ask
`PASSES` times to average as they do. Not run with their weights here.
"""

from __future__ import annotations

import asyncio
from functools import partial
from statistics import fmean

from PIL import Image

from rl.reward.client import Judge
from rl.reward.scores import Failure, Outcome, Score, parse_scores
from rl.reward.viescore import viescore, with_instruction, written_scores

HIGHEST = 25
PASSES = 1
FORM = """Reason first. Then answer with one JSON object: {"reasoning": "...", "score": [first, second]}, each a number
from 0 to 25."""
EDIT = f"""Two images: a source, and what an editor made of it.
Editing instruction: <instruction>
First score: how far the instruction was carried out. Second score: how well all else was kept.
{FORM}"""
QUALITY = f"""One image, made by an editor.
First score: how natural it looks. Second score: how free it is of artifacts.
{FORM}"""


class EditScore:
    """needs_target: whether `score` is given the dataset's own edit, which every row then has to have."""

    needs_target = False

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    async def score(
        self, instruction: str, source: Image.Image, edited: Image.Image, target: Image.Image | None = None
    ) -> Outcome:
        """The mean over the passes, or the first failure."""
        outcomes = await asyncio.gather(*(self._once(instruction, source, edited, turn) for turn in range(PASSES)))
        scores: list[Score] = []
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                return outcome
            scores.append(outcome)
        parts = {name: fmean(score.parts[name] for score in scores) for name in scores[0].parts}
        return Score(fmean(score.value for score in scores), parts)

    async def _once(self, instruction: str, source: Image.Image, edited: Image.Image, turn: int) -> Outcome:
        # Equal questions share one reply: a further pass has to differ.
        again = f"\n(reading {turn + 1})" * (turn > 0)
        parse = partial(parse_scores, highest=HIGHEST)
        edit, quality = await asyncio.gather(
            written_scores(self.judge, with_instruction(EDIT, instruction) + again, [source, edited], 2, parse),
            written_scores(self.judge, QUALITY + again, [edited], 2, parse),
        )
        return viescore([part if isinstance(part, Failure) else part * 10 / HIGHEST for part in (*edit, *quality)])
