"""Step 2 of 4: what a judge says about an editor's pictures.

    python -m baselines.score --predictions runs/x/eval/sft_s --judge-url http://127.0.0.1:4877/v1

Writes scores.parquet beside the predictions: one row per sample with its VIEScore, or with the reason why there is
none. Answers of the judge are kept in `--cache` as they arrive, so an interrupted run asks nothing twice, and running
again asks only for what failed.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import deque
from concurrent.futures import Future
from pathlib import Path

from baselines.records import (
    PREDICTIONS_FILE,
    SCORED,
    SCORES_FILE,
    UNAVAILABLE,
    UNPARSABLE,
    Prediction,
    ScoredSample,
    read_records,
    read_settings,
    refuse_other_settings,
    write_records,
)
from emu3.errors import run_main
from emu3.files import sha256_of
from emu3.tokenizer.images import read_image
from rl.reward.cache import AnswerCache
from rl.reward.judge import Judge
from rl.reward.outcome import Outcome, Score, Unavailable, Unparsable
from rl.reward.prompts import EditPrompts, prompts_from
from rl.reward.scorer import Scorer
from rl.reward.viescore import VieScore

ANSWERS_FILE = "answers.jsonl"
# Pictures of this many samples are in memory at once: enough to keep every slot of the judge busy.
WINDOW = 256


def run(
    predictions: Path,
    *,
    judge_url: str,
    judge_model: str | None = None,
    prompts: Path | None = None,
    cache: Path | None = None,
    output: Path | None = None,
) -> Path:
    """Score a predictions file (or its folder); returns the path of scores.parquet.

    `judge_url` goes up to and with /v1, `judge_model` None takes the only one served, `prompts` is a checkout of
    VIEScore's published texts (None: this project's), `cache` and `output` lie beside the predictions if not given.
    Raises `UserError` for a judge that cannot be used, missing files, and an output made with other settings.
    """
    file = predictions / PREDICTIONS_FILE if predictions.is_dir() else predictions
    rows = read_records(file, Prediction)
    output = output or file.with_name(SCORES_FILE)
    texts = prompts_from(prompts)
    with AnswerCache(cache or file.with_name(ANSWERS_FILE)) as answers:
        judge = Judge(judge_url, judge_model, cache=answers)
        with Scorer(VieScore(judge, texts)) as scorer:
            settings = {
                "metric": "viescore",
                "judge": scorer.judge_name,
                "prompts": _digest(texts),
                "predictions": sha256_of(file),
            }
            if output.exists():
                refuse_other_settings(output, read_settings(output), settings)
            scores = _score(rows, file.parent, scorer)
            counters = scorer.counters()
    write_records(output, scores, settings)
    failed = [score for score in scores if score.status != SCORED]
    print(
        f"{rows[0].model}: {len(scores) - len(failed)} scored, {len(failed)} failed; "
        f"{counters['asks']:.0f} questions, {counters['cache_hits']:.0f} answered before"
    )
    if failed:
        print(f"first failure: sample {failed[0].id}, {failed[0].status}: {(failed[0].detail or '')[:200]}")
    return output


def _score(rows: list[Prediction], folder: Path, scorer: Scorer) -> list[ScoredSample]:
    """The rows' outcomes in their order, `WINDOW` of them under way."""
    pending: deque[tuple[Prediction, Future[Outcome]]] = deque()
    scores = []
    for row in rows:
        if len(pending) == WINDOW:
            first, future = pending.popleft()
            scores.append(_scored(first, future.result()))
        source, edited = (read_image(folder / name, str(folder / name)) for name in (row.source, row.edited))
        pending.append((row, scorer.submit(row.instruction, source, edited)))
    return scores + [_scored(row, future.result()) for row, future in pending]


def _scored(row: Prediction, outcome: Outcome) -> ScoredSample:
    status, value, parts, detail = SCORED, None, {}, None
    match outcome:
        case Score():
            value, parts = outcome.value, outcome.parts
        case Unparsable():
            status, detail = UNPARSABLE, outcome.answer
        case Unavailable():
            status, detail = UNAVAILABLE, outcome.reason
    return ScoredSample(
        id=row.id,
        benchmark=row.benchmark,
        split=row.split,
        task=row.task,
        model=row.model,
        editor=row.editor,
        status=status,
        value=value,
        parts=parts,
        detail=detail,
    )


def _digest(prompts: EditPrompts) -> str:
    return hashlib.sha256(f"{prompts.edit}\0{prompts.quality}".encode()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Score an editor's pictures with a judge.", allow_abbrev=False)
    parser.add_argument("--predictions", type=Path, required=True, help="predictions.parquet or its folder")
    parser.add_argument("--judge-url", required=True, help="OpenAI-compatible address, up to and with /v1")
    parser.add_argument("--judge-model", help="name of the judge (default: the only one that is served)")
    parser.add_argument("--prompts", type=Path, help="checkout of VIEScore's published prompts")
    parser.add_argument("--cache", type=Path, help=f"file of the judge's answers (default: {ANSWERS_FILE} beside)")
    parser.add_argument("--output", type=Path, help=f"default: {SCORES_FILE} beside the predictions")
    print(run(**vars(parser.parse_args())))


if __name__ == "__main__":
    run_main(main)
