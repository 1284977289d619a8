"""The page of a training run: charts from the lines of its metrics, in one HTML file.

It needs no server and no network, and loads itself again while steps are still to come. It cannot know that a run was
killed: it says when its last step was written. A value that never moved (no failures, one learning rate) gets a
sentence instead of an empty chart. SFT fills the page as it is; RL's template extends it; the evaluation's page is
another one and takes style, panels and environment from here.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from emu3.files import whole_file
from emu3.report.charts import Curve, first_and_last, line_chart
from emu3.report.metrics_file import shown_settings

REPORT = "report.html"
TEMPLATE = "run_page.html.jinja"
REFRESH = 30
"""Seconds after which the page of a run that goes on is loaded again."""

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Panel:
    """A chart with its heading. note: the unit of its values, or what they are. legend: names of its curves in the
    order of their colours, if it has several. noisy: one curve, each step faint behind its running mean."""

    title: str
    note: str
    chart: Markup
    legend: Sequence[str] = ()
    noisy: bool = False


@dataclass(frozen=True)
class StepMetric:
    """What is read from a line; None where the line has it not. note: its unit. exact: without noise, drawn without a
    running mean. bounds: of its axis, where it has a scale of its own."""

    title: str
    note: str
    of: Callable[[Line], float | None]
    exact: bool = False
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class Section:
    """Charts under a heading. unmoved: values that get a sentence below them instead of a chart."""

    title: str
    panels: Sequence[Panel]
    unmoved: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Head:
    """The head of a page. done and steps: optimizer steps so far and in all, None where that is not known. written:
    when the last of them was. facts: the run in a few values, by their names. settings: nested."""

    name: str
    done: int
    steps: int | None
    finished: bool
    written: datetime.datetime
    facts: Mapping[str, str]
    settings: Mapping[str, Any]


def write_page(path: Path, head: Head, sections: Sequence[Section], template: Path | None = None, **more: Any) -> Path:
    """Write the page, whole or not at all; returns `path`. template: one that extends `TEMPLATE`, which gets `more`."""
    page = (
        environment(template.parent if template else None)
        .get_template(template.name if template else TEMPLATE)
        .render(
            head=head,
            settings=shown_settings(head.settings),
            sections=[section for section in sections if section.panels or section.unmoved],
            refresh=REFRESH,
            **more,
        )
    )
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def last_written(path: Path) -> datetime.datetime:
    """When the file was written, in local time."""
    return datetime.datetime.fromtimestamp(path.stat().st_mtime).astimezone()


def panels(lines: Sequence[Line], metrics: Iterable[StepMetric], small: bool = False) -> list[Panel]:
    """A chart of each metric that moved. small: a small one, whose note says where the metric began and is now."""
    found = []
    for metric, curve in curves(lines, metrics):
        if min(curve.values) < max(curve.values):
            chart = line_chart(metric.title, curve.steps, curve.values, metric.exact, metric.bounds, small)
            note = from_to(curve.values) if small else metric.note
            found.append(Panel(metric.title, note, chart, noisy='class="raw"' in chart))
    return found


def from_to(values: Sequence[float]) -> str:
    """`7.16 → 4.31`, by `first_and_last`."""
    return " → ".join(f"{value:.2f}" for value in first_and_last(values))


def unmoved(lines: Sequence[Line], metrics: Iterable[StepMetric]) -> dict[str, float]:
    """The value of each metric that is the same in all steps that have it."""
    return {
        metric.title: curve.values[0]
        for metric, curve in curves(lines, metrics)
        if min(curve.values) == max(curve.values)
    }


def named_metrics(lines: Sequence[Line], key: str, bounds: tuple[float, float]) -> list[StepMetric]:
    """A metric for each name in the dict `key` of the lines, all on one scale."""
    names = dict.fromkeys(name for line in lines for name in line[key])
    return [
        StepMetric(name.replace("_", " "), "", lambda line, name=name: line[key].get(name), bounds=bounds)  # type: ignore[misc]
        for name in names
    ]


def curves(lines: Sequence[Line], metrics: Iterable[StepMetric]) -> list[tuple[StepMetric, Curve]]:
    """The metrics that any line has, over the steps that have them."""
    found = []
    for metric in metrics:
        points = [(line["step"], value) for line in lines if (value := metric.of(line)) is not None]
        if points:
            found.append((metric, Curve(metric.title, [step for step, _ in points], [value for _, value in points])))
    return found


@lru_cache
def environment(folder: Path | None) -> jinja2.Environment:
    """Templates of this package and of `folder`. The filter `minus` writes negative numbers with a true minus sign."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, *([folder] if folder else [])]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["minus"] = lambda text: re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", text)
    return environment
