"""A page that shows a run while it goes, and after it.

    python -m rl.watch.report RUN_FOLDER        from metrics.jsonl and config.json alone, at any time

`report.html` stands in the run's folder, needs no server and no network, and loads itself again while steps are still
to come. The trainer writes an edition every `watch.report_every` steps. It cannot know that a run was killed: it says
when its last step was written.
"""

from __future__ import annotations

import argparse
import datetime
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2

from emu3.errors import UserError, run_main
from emu3.files import read_json, whole_file
from rl.metrics import step_seconds
from rl.watch.charts import running_mean
from rl.watch.console import duration
from rl.watch.flat import flat, without_secrets
from rl.watch.metrics_file import NAME, read_lines
from rl.watch.panels import JUDGING, LEARNING, REWARD, panels, small_panels, unmoved, work_panels

REPORT = "report.html"
TEMPLATE = "report.html.jinja"
REFRESH = 30
"""Seconds after which the page of a run that goes on is loaded again."""


def write_report(run: Path) -> Path:
    """Write the page of a run that has done a step; returns its path. Raises UserError for another folder."""
    lines = read_lines(run)
    if not lines:
        raise UserError(f"{run / NAME} has no step yet")
    config = read_json(run / "config.json")
    done, steps = lines[-1]["step"] + 1, config["steps"]
    page = (
        _environment()
        .get_template(TEMPLATE)
        .render(
            name=config["run_name"],
            done=done,
            steps=steps,
            finished=done >= steps,
            refresh=REFRESH,
            written=datetime.datetime.fromtimestamp((run / NAME).stat().st_mtime).astimezone(),
            facts=_facts(lines, steps - done),
            reward=panels(lines, [REWARD]),
            tasks=sorted(small_panels(lines, "reward_by_task"), key=lambda panel: panel.title),
            parts=small_panels(lines, "parts"),
            learning=panels(lines, LEARNING),
            work=work_panels(lines) + panels(lines, JUDGING),
            still=unmoved(lines, [REWARD, *LEARNING, *JUDGING]),
            pictures=[f"pictures/{path.name}" for path in sorted((run / "pictures").glob("step_*.png"), reverse=True)],
            settings=without_secrets(flat(config, ".")),
        )
    )
    path = run / REPORT
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _facts(lines: Sequence[Mapping[str, Any]], left: int) -> dict[str, str]:
    """The run in a few figures, by their names. left: steps to come."""
    rewards = [line["reward"] for line in lines if line["reward"] is not None]
    smooth = running_mean(rewards) if rewards else []
    rollouts, failed = (sum(line[key] for line in lines) for key in ("rollouts", "failed"))
    each = step_seconds(lines)
    facts = {
        "Reward": f"{smooth[0]:.2f} → {smooth[-1]:.2f}" if smooth else "–",
        "Rollouts": f"{rollouts:,}",
        "Without a score": f"{failed:,}",
        "A step takes": "–" if each is None else duration(each),
    }
    return facts | ({"Left": "–" if each is None else duration(each * left)} if left > 0 else {})


@lru_cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["minus"] = lambda text: re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", text)
    return environment


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the report of a training run.", allow_abbrev=False)
    parser.add_argument("run", type=Path, help="folder that holds metrics.jsonl and config.json")
    print(write_report(parser.parse_args().run))


if __name__ == "__main__":
    run_main(main)
