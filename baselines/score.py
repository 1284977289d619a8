"""Step 2 of 4: what a judge and other metrics say about an editor's predictions.

    python -m baselines.score --predictions runs/x/eval/sft_s --judge-url http://127.0.0.1:4877/v1
    python -m baselines.score --predictions runs/x/eval/sft_s --metrics l1 psnr ssim
    python -m baselines.score --predictions runs/x/eval/sft_s --judge-url https://api.openai.com/v1 \
        --judge-model gpt-4o-mini-2024-07-18 --requests-per-minute 400 --usd-per-million-tokens 0.15 0.60
    python -m baselines.score --predictions runs/x/eval/sft_s --judge-url https://api.openai.com/v1 \
        --protocol published --prompts VIEScore

The key is read from OPENAI_API_KEY. `--protocol published` scores as the published evaluation did: its judge by its
dated name, its authors' wording (`--prompts`, a checkout of VIEScore), its rules for reading a reply, a temperature
that is left to the server, JPEG, the source before cropping, two rounds of asking. `ours`, the default, reads strictly
and can be repeated.

Writes scores.parquet beside the predictions: a row per sample and metric with its value, or with the reason why there
is none; what the judge said word for word; metrics that were there before stay. Replies of the judge are kept in
`--cache` as they arrive, so an interrupted run asks nothing twice, and running again asks only for what failed. Beside
it MODEL_viescore_stats.json (`baselines.tables.statistics`) and, in usage.jsonl, what each run sent and what that cost.

The judge's client is the one of training (`rl.reward`). Around it stand a transcript, which hands each sample the
replies that its score was read from, and a pace, which keeps the requests per minute below what a provider allows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from baselines.results.records import (
    PREDICTIONS_FILE,
    SCORED,
    SCORES_FILE,
    UNAVAILABLE,
    UNCROPPED,
    UNPARSABLE,
    VIESCORE,
    Prediction,
    ScoredSample,
    ScoreFile,
    read_records,
    read_settings,
    scored_row,
)
from baselines.tables.conditions import OURS, PROTOCOLS, PUBLISHED, PUBLISHED_JUDGE
from baselines.tables.statistics import stats_name, viescore_stats
from emu3.errors import UserError, run_main
from emu3.extensions import source_digests
from emu3.files import sha256_of, write_json
from emu3.settings import number_in
from emu3.tokenizer.images import read_image
from rl.reward.cache import ReplyCache
from rl.reward.client import Judge
from rl.reward.config import DEFAULT, JudgeConfig, add_judge_flags, judge_from_flags
from rl.reward.scorer import Scorer
from rl.reward.scores import Outcome, Score, Unavailable, Unparsable, parse_scores, published_scores
from rl.reward.viescore import HOW_TO_GET_PROMPTS, EditPrompts, VieScore, prompts_from

REPLIES_FILE = "answers.jsonl"
PUBLISHED_SETTINGS = replace(DEFAULT, model=PUBLISHED_JUDGE, temperature=None, image_format="jpeg", reasks=1)
"""How the published evaluation asked: the temperature left to the server, JPEG of quality 75, two rounds."""
# Images of this many samples are in memory at once: enough to keep every slot of the judge busy.
WINDOW = 256
GIVE_UP_AFTER = 8
"""So many samples refused at the start say that the request is at fault, not the sample."""
QUESTIONS = 2
"""Questions that a VIEScore asks."""

USAGE_FILE = "usage.jsonl"

_TRANSCRIPT: ContextVar[dict[str, str]] = ContextVar("transcript")


def run(
    predictions: Path,
    *,
    metrics: Sequence[str] = (VIESCORE,),
    judge: JudgeConfig | None = None,
    protocol: str = OURS,
    requests_per_minute: float | None = None,
    usd_per_million_tokens: tuple[float, float] | None = None,
    weights: Path | None = None,
    output: Path | None = None,
) -> Path:
    """Score a predictions file (or its folder); returns the path of scores.parquet.

    `judge` is asked by viescore alone; another seed at a temperature above 0 asks the same judge anew. Its replies are
    kept in `judge.cache`, beside the predictions if not given. `protocol` is one of `PROTOCOLS`; the published one
    takes the settings of `PUBLISHED_SETTINGS` only. `usd_per_million_tokens` are the prices of a question's and a
    reply's tokens. `weights` is a folder of the other metrics' weights, `output` lies beside the predictions if not
    given. Raises `UserError` for a judge or a metric that cannot be used, missing files, scores that were made with
    other settings, and, once the reasons are written, a judge that scored nothing at all.
    """
    file = predictions / PREDICTIONS_FILE if predictions.is_dir() else predictions
    if not file.is_file():
        raise UserError(f"{file} does not exist: baselines.evaluate writes it when all images are there")
    rows = read_records(file, Prediction)
    output = output or file.with_name(SCORES_FILE)
    scores = ScoreFile(output, {"predictions": sha256_of(file)})
    scores.settings |= {"evaluation": evaluation_of(read_settings(file))}
    for name in metrics:
        if name == VIESCORE:
            if judge is None or not judge.base_url:
                raise UserError("viescore needs a judge: --judge-url http://HOST:PORT/v1")
            usage = _judge(rows, file, scores, judge, protocol, requests_per_minute, usd_per_million_tokens)
            note_usage(output.parent, usage)
            about = {"model": rows[0].model, "benchmark": rows[0].benchmark, "judge": usage.judge}
            write_json(output.with_name(stats_name(rows[0].model)), about | viescore_stats(scores.by_metric[name]))
        else:
            name = _measure(name, rows, file.parent, weights, scores)
        _print_counts(scores.by_metric[name])
        if name == VIESCORE and all(score.status != SCORED for score in scores.by_metric[name]):
            why = scores.by_metric[name][0]
            raise UserError(f"no sample of {len(rows)} has a score: {why.status}: {(why.detail or '')[:200]}")
    return output


def _judge(
    rows: list[Prediction],
    file: Path,
    scores: ScoreFile,
    judge: JudgeConfig,
    protocol: str,
    requests_per_minute: float | None,
    prices: tuple[float, float] | None,
) -> Usage:
    """VIEScore of the rows of `file`, with the conditions that it was made under."""
    check_protocol(protocol, judge, file)
    published = protocol == PUBLISHED
    texts = prompts_from(judge.prompts)
    with ReplyCache(Path(judge.cache or file.with_name(REPLIES_FILE))) as replies:
        client = Judge(judge, replies, note_reply)
        with Scorer(VieScore(client, texts, published_scores if published else parse_scores)) as scorer:
            made = {"judge": scorer.judge_name, "prompts": _digest(texts), "protocol": protocol} | _settings(judge)
            if "judge" in scores.settings:  # what a file from before these could be set was made with
                scores.settings = {"protocol": OURS} | _settings(DEFAULT) | scores.settings
            scores.check(made)
            pace = Pace(requests_per_minute, scorer.counters) if requests_per_minute else None
            found = list(judge_rows(rows, file.parent, scorer, pace, uncropped=published))
            usage = usage_of(scorer.judge_name, scorer.counters(), prices)
    today = datetime.now(UTC).date().isoformat()
    about = {
        "judge_served": sorted(client.served),
        "judged_on": today if usage.requests else scores.settings.get("judged_on", today),
    }
    scores.put(VIESCORE, found, made | about)
    return usage


def check_protocol(protocol: str, judge: JudgeConfig, predictions: Path | None) -> None:
    """Raise `UserError` where scores by `judge` would not be by the published protocol, though that is asked for.

    predictions: the file that is to be scored; None while there is none.
    """
    if protocol != PUBLISHED:
        return
    if judge.prompts is None:
        raise UserError(
            "the published protocol asks in VIEScore's own words, which this project does not hold: "
            f"{HOW_TO_GET_PROMPTS}, then give --prompts VIEScore, or take --protocol ours"
        )
    for name in ("temperature", "max_tokens", "image_format", "reasks"):
        ours, theirs = getattr(judge, name), getattr(PUBLISHED_SETTINGS, name)
        if ours != theirs:
            flag = f"--judge-{name.replace('_', '-')}"
            raise UserError(
                f"the published protocol has {flag} {theirs}, not {ours}: leave it out, or take --protocol ours"
            )
    if "max_tokens" in judge.omit:
        raise UserError("the published protocol has a limit of tokens: take --protocol ours to leave it out")
    if predictions is not None and UNCROPPED not in pq.read_schema(predictions).names:
        raise UserError(
            f"{predictions} has no uncropped sources, which the published protocol shows to the judge: it is from an "
            "earlier version, run baselines.evaluate anew"
        )


def evaluation_of(settings: dict[str, Any]) -> dict[str, Any]:
    """What of a predictions file's settings a reader of its scores has to know."""
    names = ("editor", "seed", "limit", "part", "image_area", "options", "extensions")
    return {name: settings[name] for name in names if name in settings}


def _measure(name: str, rows: list[Prediction], folder: Path, weights: Path | None, scores: ScoreFile) -> str:
    """Another metric than VIEScore; returns what it is called. Rows stand if they are whole and were made alike."""
    # Imported here: the metrics bring torch and models, which the judge needs nothing of.
    from baselines.metrics.measuring import measure, metric_named

    metric = metric_named(name, weights)
    about = {"version": metric.version, "higher_is_better": metric.higher_is_better}
    own = source_digests(name)
    made = {f"metric {metric.name}": {**about, "extension": own} if own else about}
    before = scores.by_metric.get(metric.name)
    if before is not None and all(score.status == SCORED for score in before):
        scores.check(made)
    else:
        scores.put(metric.name, measure(metric, rows, folder), made)
    return metric.name


def _print_counts(scores: list[ScoredSample]) -> None:
    failed = [score for score in scores if score.status != SCORED]
    print(f"{scores[0].model}, {scores[0].metric}: {len(scores) - len(failed)} scored, {len(failed)} failed")
    if failed:
        print(f"first failure: sample {failed[0].id}, {failed[0].status}: {(failed[0].detail or '')[:200]}")


def _settings(judge: JudgeConfig) -> dict[str, Any]:
    return {f"judge_{name}": value for name, value in judge.decisive().items()}


def _digest(prompts: EditPrompts) -> str:
    return hashlib.sha256(f"{prompts.edit}\0{prompts.quality}".encode()).hexdigest()


def note_reply(images: int, reply: str) -> None:
    """Write a reply to the transcript of the sample that it is about: "sc" for the question with source and edit, "pq"
    for that with the edit alone. For `Judge`."""
    _TRANSCRIPT.get()["sc" if images > 1 else "pq"] = reply


class Pace:
    """Lets samples through so that no more than `per_minute` requests go out in a minute, spread evenly over it.

    counters: those of the scorer, by which questions that were answered from the cache cost nothing, and repeated
    requests count.
    """

    def __init__(
        self,
        per_minute: float,
        counters: Callable[[], dict[str, float]],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._per_second = per_minute / 60
        self._counters = counters
        self._clock = clock
        self._sleep = sleep
        self._start = clock()
        self._asked = 0

    def wait(self) -> None:
        """Return when the questions of one more sample fit."""
        while self._used() + QUESTIONS > QUESTIONS + self._per_second * (self._clock() - self._start):
            self._sleep(0.02)
        self._asked += QUESTIONS

    def _used(self) -> float:
        counters = self._counters()
        free = counters["cache_hits"] + counters["shared"]
        return self._asked - free + counters["retries"] + counters["reasks"]


def judge_rows(
    rows: list[Prediction], folder: Path, scorer: Scorer, pace: Pace | None, *, uncropped: bool = False
) -> Iterator[ScoredSample]:
    """The rows' outcomes in their order, `WINDOW` of them under way. The judge of `scorer` calls `note_reply`; paths of
    the rows start from `folder`. uncropped: show sources before their crop. Raises `UserError` if the judge refuses the
    first `GIVE_UP_AFTER` rows, or all."""
    pending: deque[tuple[Prediction, dict[str, str], Future[Outcome]]] = deque()
    refused = 0
    left = iter(rows)
    for place in range(len(rows)):
        while len(pending) < WINDOW and not (pending and pending[0][2].done()):
            if (row := next(left, None)) is None:
                break
            source = (row.source_uncropped or row.source) if uncropped else row.source
            images = (read_image(folder / name, str(folder / name)) for name in (source, row.edited))
            if pace is not None:
                pace.wait()
            transcript: dict[str, str] = {}
            # The scorer's loop runs each submission in the context that it was submitted from.
            _TRANSCRIPT.set(transcript)
            pending.append((row, transcript, scorer.submit(row.instruction, *images)))
        row, replies, future = pending.popleft()
        outcome = future.result()
        refused += isinstance(outcome, Unavailable) and outcome.refused
        if isinstance(outcome, Unavailable) and refused == place + 1 == min(GIVE_UP_AFTER, len(rows)):
            raise UserError(f"the judge refused the first {refused} of {len(rows)} samples: {outcome.reason}")
        yield scored(row, outcome, replies)


def scored(row: Prediction, outcome: Outcome, replies: dict[str, str]) -> ScoredSample:
    """The row of the scores file for what came of a sample."""
    status, value, parts, detail = SCORED, None, None, None
    match outcome:
        case Score():
            value, parts = outcome.value, outcome.parts
        case Unparsable():
            status, detail = UNPARSABLE, "; ".join(filter(None, (outcome.reason, outcome.reply)))
        case Unavailable():
            status, detail = UNAVAILABLE, outcome.reason
    kept: dict[str, str] = {name: replies[name] for name in ("sc", "pq") if name in replies}
    return scored_row(row, VIESCORE, status, value, parts=parts, answers=kept, detail=detail)


@dataclass(frozen=True)
class Usage:
    """Counts of one run. `requests` are what the judge got, repetitions included; tokens are None where it does not
    report them, `usd` is None without tokens or prices."""

    judge: str
    questions: int
    answered_before: int
    requests: int
    prompt_tokens: int | None
    completion_tokens: int | None
    usd: float | None


def usage_of(judge: str, counters: dict[str, float], prices: tuple[float, float] | None) -> Usage:
    """`counters` are the scorer's; `prices` are USD per million tokens of questions and of replies."""
    sent = counters["asks"] - counters["cache_hits"] - counters["shared"] + counters["retries"] + counters["reasks"]
    prompt, completion = (int(counters.get(name, 0)) or None for name in ("prompt_tokens", "completion_tokens"))
    usd = None
    if prices is not None and prompt is not None and completion is not None:
        usd = (prices[0] * prompt + prices[1] * completion) / 1e6
    return Usage(judge, int(counters["asks"]), int(counters["cache_hits"]), int(sent), prompt, completion, usd)


def note_usage(folder: Path, usage: Usage) -> None:
    """Print it, and append it to the folder's file if anything was sent."""
    cost = f", {usage.usd:.4f} USD" if usage.usd is not None else ""
    print(f"{usage.judge}: {usage.questions} questions, {usage.answered_before} answered before{cost}")
    if usage.requests:
        try:
            with (folder / USAGE_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(usage)) + "\n")
        except OSError as error:
            print(f"note: {folder / USAGE_FILE} cannot be written: {error.strerror}")


def main() -> None:
    print(run(**arguments_of()))


def arguments_of(words: Sequence[str] | None = None) -> dict[str, Any]:
    """What `run` takes, from a command line."""
    parser = argparse.ArgumentParser(
        prog=None if words is None else "baselines.score",
        description="Score an editor's predictions.",
        allow_abbrev=False,
    )
    parser.add_argument("--predictions", type=Path, required=True, help="predictions.parquet or its folder")
    parser.add_argument(
        "--metrics", nargs="+", default=[VIESCORE], help="viescore, l1, psnr, file.py:name (default: viescore)"
    )
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, default=OURS, help="published: as the paper's scores were made (default: ours)"
    )
    parser.add_argument(
        "--requests-per-minute", type=number_in(float, above=0, most=1e9), help="what the judge's provider allows"
    )
    parser.add_argument(
        "--usd-per-million-tokens",
        type=number_in(float, least=0, most=1e9),
        nargs=2,
        metavar=("QUESTION", "REPLY"),
        help="for the cost in usage.jsonl",
    )
    parser.add_argument("--weights", type=Path, help="folder of the other metrics' weights")
    parser.add_argument("--output", type=Path, help=f"default: {SCORES_FILE} beside the predictions")
    group = parser.add_argument_group("judge", "of viescore")
    add_judge_flags(group)
    group.add_argument(
        "--cache",
        dest="judge_cache",
        default=argparse.SUPPRESS,
        help=f"file of the judge's replies (default: {REPLIES_FILE} beside the predictions)",
    )
    arguments = vars(parser.parse_args(words))
    default = PUBLISHED_SETTINGS if arguments["protocol"] == PUBLISHED else DEFAULT
    arguments["judge"] = judge_from_flags(arguments, default)
    return arguments


if __name__ == "__main__":
    run_main(main)
