"""From sampled groups to judged ones: decode, hand over, wait, and retry while the judge is unavailable.

A rollout that the judge could not score has no reward; a few of these in a step are left out of it. Many of them
mean that the judge is gone: then the run waits and asks again instead of training on what little there is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from PIL import Image

from emu3.errors import UserError
from emu3.extensions import load_extension, make_extension
from emu3.tokenizer.codec import ImageCodec
from emu3.training import ranks
from rl.config import JudgeConfig, RewardConfig
from rl.reward.cache import ReplyCache
from rl.reward.client import Judge
from rl.reward.endpoints import shown_addresses
from rl.reward.scorer import Scorer
from rl.reward.scores import Outcome, Score, Unavailable, Unparsable
from rl.reward.viescore import ExpectedVieScore, GroundScore, Metric, VieScore, WeightedMean, prompts_from
from rl.rollout.engine import Prompt, Rollout

VIESCORE_ALONE = RewardConfig()
LONGEST_QUOTE = 120
Wait = Callable[[Callable[[], bool], float], None]
"""Waits while the first is true, at most so many seconds."""


@dataclass
class Episode:
    """A rollout, its images, and the score that is under way. target: only where the prompt has one."""

    prompt: Prompt
    rollout: Rollout
    source: Image.Image
    edited: Image.Image
    score: Future[Outcome]
    target: Image.Image | None = None


@contextmanager
def start_scorer(judge: JudgeConfig, rank: int, reward: RewardConfig = VIESCORE_ALONE) -> Iterator[Scorer]:
    """The judge's scorer. Raises UserError if the judge does not answer, its prompts or cache cannot be read, or judge
    and reward do not go together.

    rank: ranks other than 0 keep their replies in a file of their own, `<cache>.<rank>`.
    """
    path = None if judge.cache is None else Path(f"{judge.cache}.{rank}" if rank else judge.cache)
    if reward.expected and judge.prompts is not None:
        raise UserError(
            "reward.expected asks for one score at a time, which judge.prompts has no texts for; leave it out"
        )
    with ReplyCache(path) as replies:
        client = Judge(judge, replies)
        with Scorer(reward_metric(client, reward, judge.prompts)) as scorer:
            yield scorer


def reward_metric(judge: Judge, reward: RewardConfig, prompts: str | None) -> Metric:
    """What the config makes of VIEScore, GroundScore and a reward of one's own: one of them, or their weighted mean,
    whose parts then carry `viescore/`, `groundscore/` and `own/`. Raises UserError if a checkout's `prompts` or one's
    own reward cannot be read."""
    metrics: list[tuple[str, float, Metric]] = []
    if reward.viescore:
        viescore = ExpectedVieScore(judge) if reward.expected else VieScore(judge, prompts_from(prompts))
        metrics.append(("viescore", reward.viescore, viescore))
    if reward.groundscore:
        metrics.append(("groundscore", reward.groundscore, GroundScore(judge, reward.expected)))
    if reward.own is not None:
        own = make_extension(reward.own, "reward.own", "(judge)", judge, protocol=Metric)
        metrics.append(("own", reward.own_weight, own))
    return WeightedMean(metrics) if len(metrics) > 1 else metrics[0][2]


def needs_targets(reward: RewardConfig) -> bool:
    """Whether it compares with the dataset's own edit: GroundScore, or one's own that says `needs_target = True`."""
    own = None if reward.own is None else load_extension(reward.own, "reward.own")
    return reward.groundscore > 0 or bool(getattr(own, "needs_target", False))


def submit_group(scorer: Scorer, codec: ImageCodec, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Episode]:
    """Decode source, target (if the prompt has one) and rollouts in one batch and hand them to the judge; returns at
    once, in the group's order."""
    targets = [] if prompt.target is None else [prompt.target]
    source, *others = codec.decode([prompt.source, *targets, *(rollout.codes for rollout in rollouts)])
    target = others.pop(0) if targets else None
    return [
        Episode(prompt, rollout, source, image, _submit(scorer, prompt, source, image, target), target)
        for rollout, image in zip(rollouts, others, strict=True)
    ]


def _submit(
    scorer: Scorer, prompt: Prompt, source: Image.Image, edited: Image.Image, target: Image.Image | None
) -> Future[Outcome]:
    images = [source, edited] if target is None else [source, edited, target]
    return scorer.submit(prompt.instruction, *images)


def collect(
    episodes: Sequence[Episode],
    scorer: Scorer,
    judge: JudgeConfig,
    accelerator: Accelerator,
    on_pause: Callable[[], None],
    wait: Wait | None = None,
) -> list[Outcome]:
    """Wait for the scores of a step. Every rank takes part, and all pause together.

    on_pause: called once before the first pause or the error. wait: how to wait for something, for some seconds at
    most; by all ranks at the same places. Raises UserError when more than `max_failed_share` of
    the step still has no score after `pauses` pauses, and at once when the judge replied to more than that by a refusal
    or without a score: waiting does not mend these.
    """
    wait = wait or _wait
    for pause in range(judge.pauses + 1):
        wait(lambda: not all(episode.score.done() for episode in episodes), math.inf)
        outcomes = [episode.score.result() for episode in episodes]
        lost = [outcome for outcome in outcomes if not isinstance(outcome, Score)]
        final = [outcome for outcome in lost if not _may_pass(outcome)]
        counts = ranks.gather((len(lost), len(final), len(outcomes)))
        failed, hopeless, total = map(sum, zip(*counts, strict=True))
        if failed <= judge.max_failed_share * total:
            return outcomes
        url = shown_addresses(judge.base_url)
        complaint = f"the judge at {url} gave no score for {failed} of {total} rollouts"
        if pause == 0:
            on_pause()
        if hopeless > judge.max_failed_share * total:
            raise UserError(
                f"{complaint}{_reason(final)}; the run is saved: waiting will not mend this, see to the judge and its "
                "settings (judge.*) and start it again"
            )
        complaint += _reason(lost)
        if pause == judge.pauses:
            break
        accelerator.print(
            f"paused: {complaint}; asking again in {judge.pause_seconds:g} s ({pause + 1} of {judge.pauses})",
            flush=True,
        )
        wait(lambda: True, judge.pause_seconds)
        for episode, outcome in zip(episodes, outcomes, strict=True):
            if not isinstance(outcome, Score) and not (isinstance(outcome, Unavailable) and outcome.refused):
                episode.score = _submit(scorer, episode.prompt, episode.source, episode.edited, episode.target)
    raise UserError(f"{complaint}; the run is saved: start it again when the judge is back")


def _may_pass(outcome: Outcome) -> bool:
    return isinstance(outcome, Unavailable) and not outcome.refused


def _reason(lost: Sequence[Outcome]) -> str:
    """Why the last of them has no score, with the words of the judge where there are any."""
    match lost[-1:]:
        case [Unavailable(reason=reason)]:
            return f" ({reason})"
        case [Unparsable(reply=reply, reason=reason)]:
            said = repr(" ".join(reply.split())[:LONGEST_QUOTE])
            return f" (its replies hold no scores, such as {said}{f': {reason}' if reason else ''})"
    return ""


def _wait(waiting: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while waiting() and time.monotonic() < end:
        time.sleep(0.02)
