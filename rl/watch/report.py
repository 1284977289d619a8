"""The page of an RL run: what its lines hold, and the charts of it.

    python -m rl.watch.report RUN_FOLDER        from metrics.jsonl and config.json alone, at any time

`report.html` stands in the run's folder. The trainer writes one every `watch.report_every` steps, or more rarely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emu3.errors import UserError, run_main
from emu3.files import read_json
from emu3.flags import CommandParser
from emu3.report.charts import lines_chart, stacked_chart
from emu3.report.console import duration, settled_median
from emu3.report.metrics_file import NAME, read_lines
from emu3.report.run_page import (
    REPORT,
    Head,
    Line,
    Panel,
    Section,
    StepMetric,
    curves,
    from_to,
    last_written,
    named_metrics,
    panels,
    unmoved,
    write_page,
)  # fmt: skip
from rl.reward.viescore import PARTS_NOTE

SCORES = (0.0, 10.0)
"""The scale of a reward and of its parts."""
TEMPLATE = Path(__file__).with_name("report.html.jinja")


def _judge(line: Line, name: str) -> float | None:
    value: float | None = (line.get("judge") or {}).get(name)
    return value


def _cut_share(line: Line) -> float | None:
    cut = line.get("cut_chains")
    return None if cut is None else float(cut) / float(line["rollouts"])


REWARD = StepMetric("Reward", "score, mean over the rollouts with one", lambda line: line["reward"], bounds=SCORES)
LEARNING = (
    StepMetric("KL to the start", "nats per token", lambda line: line["kl"]),
    StepMetric("Entropy", "nats per token", lambda line: line["entropy"]),
    StepMetric("Groups of equal scores", "share", lambda line: line["constant_share"]),
    StepMetric("Gradient norm", "without unit, before clipping", lambda line: line["grad_norm"]),
    StepMetric("Completion length", "tokens", lambda line: line["answer_tokens"]),
    StepMetric("Chains of thought cut at think_tokens", "share", _cut_share),
    StepMetric("Sampler against trainer", "mean distance in nats", lambda line: line["logprob_gap"]),
    StepMetric("Sampler's new weights", "distance on a probe, nats", lambda line: line.get("probe_gap")),
    StepMetric("Tokens outside the clip", "share", lambda line: line["clip_share"]),
)
JUDGING = (
    StepMetric("Rollouts without a score", "share", lambda line: line["failed"] / line["rollouts"]),
    StepMetric("Latency of the judge", "mean seconds per question", lambda line: _judge(line, "latency_mean")),
    StepMetric("Judge's time hidden by other work", "share", lambda line: _judge(line, "hidden_share")),
)


def write_report(run: Path) -> Path:
    """Write the page of a run that has done a step; returns its path. Raises UserError for another folder."""
    lines = read_lines(run)
    if not lines:
        raise UserError(f"{run / NAME} has no step yet")
    config = read_json(run / "config.json")
    tasks = sorted(named_metrics(lines, "reward_by_task", SCORES), key=lambda metric: metric.title)
    parts = named_metrics(lines, "parts", SCORES)
    done, steps = lines[-1]["step"] + 1, config["steps"]
    return write_page(
        run / REPORT,
        Head(
            name=config["run_name"],
            done=done,
            steps=steps,
            finished=done >= steps,
            written=last_written(run / NAME),
            facts=_facts(lines, steps - done),
            settings=config,
        ),
        [
            Section("Learning", panels(lines, LEARNING)),
            Section(
                "Time and judge",
                work_panels(lines) + panels(lines, JUDGING),
                unmoved(lines, [REWARD, *LEARNING, *JUDGING]),
            ),
        ],
        TEMPLATE,
        reward=panels(lines, [REWARD]),
        tasks=panels(lines, tasks, small=True),
        still_tasks=unmoved(lines, tasks),
        parts=panels(lines, parts, small=True),
        still_parts=unmoved(lines, parts),
        parts_note=PARTS_NOTE,
        pictures=[f"pictures/{path.name}" for path in sorted((run / "pictures").glob("step_*.png"), reverse=True)],
    )


def work_panels(lines: Sequence[Line]) -> list[Panel]:
    """Seconds by phase, and tokens per second."""
    phases = list(dict.fromkeys(phase for line in lines for phase in line["seconds"]))
    seconds = {phase: [line["seconds"].get(phase, 0.0) for line in lines] for phase in phases}
    stacked = stacked_chart("Seconds per step", [line["step"] for line in lines], seconds)
    found = [Panel("Seconds per step", "by phase, judge: waiting for it", stacked, phases)]
    rates = [{"step": line["step"], **tokens_per_second(line)} for line in lines]
    metrics = [StepMetric(name, "", lambda rate, name=name: rate[name]) for name in ("sampled", "trained")]  # type: ignore[misc]
    sampled_and_trained = [curve for _, curve in curves(rates, metrics)]
    if sampled_and_trained:
        chart = lines_chart("Tokens per second", sampled_and_trained)
        names = [curve.name for curve in sampled_and_trained]
        found.append(Panel("Tokens per second", "over all ranks, in that phase", chart, names))
    return found


def _facts(lines: Sequence[Mapping[str, Any]], left: int) -> dict[str, str]:
    """The run in a few values, by their names. left: steps to come."""
    rewards = [line["reward"] for line in lines if line["reward"] is not None]
    rollouts, failed = (sum(line[key] for line in lines) for key in ("rollouts", "failed"))
    each = step_seconds(lines)
    facts = {
        "Reward": from_to(rewards) if rewards else "–",
        "Rollouts": f"{rollouts:,}",
        "Without a score": f"{failed:,}",
        "A step takes": "–" if each is None else duration(each),
    }
    return facts | ({"Left": "–" if each is None else duration(each * left)} if left > 0 else {})


def tokens_per_second(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Rates of a step's line: tokens of completions `sampled`, scored tokens `trained` on, over all ranks, by the
    seconds of those phases on the main one. None where the phase did nothing."""
    rates: dict[str, float | None] = {}
    for name, phase in (("sampled", "sample"), ("trained", "train")):
        tokens, seconds = metrics.get(f"{name}_tokens"), metrics["seconds"].get(phase)
        rates[name] = tokens / seconds if tokens and seconds else None
    return rates


def step_seconds(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Median over the last lines of a run of the seconds of all phases; None before the run has settled.

    Saving is no phase: of a run that saves rarely it is a small part.
    """
    return settled_median([sum(line["seconds"].values()) for line in lines], enough=2)


def main() -> None:
    parser = CommandParser(description="Write the report of a training run.")
    parser.add_argument("run", type=Path, help="folder that holds metrics.jsonl and config.json")
    print(write_report(parser.parse_args().run))


if __name__ == "__main__":
    run_main(main)
