"""Under which conditions a score was made: the judge and how it was asked, the editor and what it is.

They stand in the settings of each scores file (`baselines.score`), and every table carries them. A difference to a
published score means something only under the published conditions: the judge of the paper, by its dated name, asked by
the published protocol. Elsewhere a table says why there is none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from baselines.results.records import VIESCORE, ScoredSample, read_records, read_settings
from baselines.tables.grid import code

PUBLISHED, OURS = "published", "ours"
PROTOCOLS = (PUBLISHED, OURS)
PUBLISHED_JUDGE = "gpt-4o-mini-2024-07-18"
JOINED = ("weights", "seed", "date")
"""Conditions in which several runs of a model may differ: each one's is shown."""
SHOWN_DIGITS = 8
"""Of a SHA-256."""


@dataclass(frozen=True)
class Conditions:
    """What the settings of one scores file say, "" or None where they say nothing.

    wording: SHA-256 of the judge's questions. served: what the judge's server calls the model, where that is another
    name. date: of the last question. editor: its kind; weights: what it is, by the SHA-256 of its files; options: what
    else of it matters to a reader. picked_by: the judge that chose among several edits. part: of the benchmark, "dev"
    or "held-out", "" for all of it.
    """

    judge: str = ""
    served: tuple[str, ...] = ()
    wording: str = ""
    protocol: str = ""
    temperature: str = ""
    image_format: str = ""
    judge_seed: str = ""
    date: str = ""
    editor: str = ""
    weights: str = ""
    seed: str = ""
    options: str = ""
    picked_by: str = ""
    part: str = ""

    @property
    def picked_by_its_judge(self) -> bool:
        """Whether the edits are the best of several by the judge that scores them."""
        return bool(self.picked_by) and self.picked_by in (self.judge, *self.served)

    @property
    def difference_means_nothing(self) -> str:
        """Why these scores are not comparable with published ones, in a word or two; "" where they are."""
        if self.judge != PUBLISHED_JUDGE:
            return "other judge" if self.judge else "unknown judge"
        return "" if self.protocol == PUBLISHED else "other protocol"

    @property
    def judged(self) -> str:
        """One line about the judge."""
        if not self.judge:
            return "judge unknown"
        served = f" (served as {', '.join(map(code, self.served))})" if self.served else ""
        known = {
            "protocol": self.protocol,
            "wording": self.wording[:SHOWN_DIGITS],
            "temperature": self.temperature,
            "images": self.image_format.upper(),
            "seed": self.judge_seed,
            "asked on": self.date,
        }
        return ", ".join(
            [f"judge {code(self.judge)}{served}", *(f"{name} {text}" for name, text in known.items() if text)]
        )

    @property
    def made(self) -> str:
        """One line about the editor."""
        known = {"weights": self.weights, "seed": self.seed, "": self.options}
        return ", ".join(
            [f"editor {self.editor or 'unknown'}", *(f"{name} {text}".strip() for name, text in known.items() if text)]
        )


ByModel = Mapping[tuple[str, str], Conditions]
"""Conditions by model and benchmark."""


def conditions_of(settings: Mapping[str, Any]) -> Conditions:
    """The conditions that the settings of a scores file tell."""
    made: dict[str, Any] = settings.get("evaluation") or {}
    judged: dict[str, Any] = {}
    if "judge" in settings:
        temperature = settings.get("judge_temperature", "unknown")
        judged = {
            "judge": str(settings["judge"]),
            "served": tuple(map(str, settings.get("judge_served") or ())),
            "wording": str(settings.get("prompts", "")),
            "protocol": str(settings.get("protocol", OURS)),
            "temperature": "left to the server" if temperature is None else f"{temperature}",
            "image_format": str(settings.get("judge_image_format", "")),
            "judge_seed": str(settings.get("judge_seed", "")),
            "date": str(settings.get("judged_on", "")),
        }
    options = made.get("options") or {}
    named = ("best_of", "picked_by", "quantization", "steps")
    shown = {name: options[name] for name in named if options.get(name) not in (None, 1)}
    shown |= {name: made[name] for name in ("limit", "part") if made.get(name) is not None}
    shown |= {f"source of {name}": digest[:SHOWN_DIGITS] for name, digest in (made.get("extensions") or {}).items()}
    return Conditions(
        **judged,
        editor=str(made.get("editor", "")),
        weights="; ".join(_weights(options.get("weights") or {})),
        seed=str(made.get("seed", "")),
        picked_by=str(options.get("picked_by") or ""),
        part=str(made.get("part") or ""),
        options=", ".join(
            [*(["think"] if options.get("think") else []), *(f"{name} {value}" for name, value in shown.items())]
        ),
    )


def _weights(parts: Mapping[str, Mapping[str, str]]) -> Iterable[str]:
    for part, identity in parts.items():
        commit = identity.get("commit", "")[:SHOWN_DIGITS]
        hub = f" ({identity['hub'].partition('@')[0]}@{commit})" if "hub" in identity else ""
        yield f"{part} {identity.get('files', '')[:SHOWN_DIGITS]}{hub}"


def read_scores(files: Sequence[Path]) -> tuple[list[ScoredSample], dict[tuple[str, str], Conditions]]:
    """The rows of some score files, and the conditions of each model on each benchmark in them.

    Files of one model on one benchmark that differ in the editor's seed are several runs of it, and files of one seed
    that differ in the weights, too: `ScoredSample.run` has the run's name, the conditions are those of all runs.
    """
    found: dict[tuple[str, str], list[tuple[Conditions, list[ScoredSample]]]] = {}
    for file in files:
        about = conditions_of(read_settings(file))
        parts: dict[tuple[str, str], list[ScoredSample]] = {}
        for row in read_records(file, ScoredSample):
            parts.setdefault((row.model, row.benchmark), []).append(row)
        for key, rows in parts.items():
            found.setdefault(key, []).append((about, rows))
    # One seed, several checkpoints: the seed alone does not name a run.
    unclear = {
        model
        for (model, _), files_of in found.items()
        if len({about.seed for about, _ in files_of}) < len({(about.seed, about.weights) for about, _ in files_of})
    }
    scores: list[ScoredSample] = []
    for (model, _), files_of in found.items():
        for about, rows in files_of:
            weights = f", {about.weights}" if model in unclear and about.weights else ""
            name = f"seed {about.seed}{weights}" if about.seed else ""
            scores += [replace(row, run=name) for row in rows]
    conditions = {}
    for key, files_of in found.items():
        # A file of other metrics alone says nothing of a judge, and takes nothing from what one of VIEScores says.
        judged = [about for about, rows in files_of if any(row.metric == VIESCORE for row in rows)]
        conditions[key] = merged(judged or [about for about, _ in files_of], JOINED)
    return scores, conditions


def of_model(conditions: ByModel, model: str) -> Conditions:
    """What a model's conditions on all of its benchmarks have in common; what differs is "several"."""
    return merged([one for (name, _), one in conditions.items() if name == model])


def merged(found: Sequence[Conditions], joined: Collection[str] = ()) -> Conditions:
    """What some conditions have in common; what differs is "several", but for fields in `joined`: all of theirs."""
    common: dict[str, Any] = {}
    for name in vars(Conditions()):
        values = list(dict.fromkeys(getattr(one, name) for one in found))
        if len(values) == 1:
            common[name] = values[0]
        elif values:
            several = " | ".join(filter(None, values)) if name in joined else "several"
            common[name] = ("several",) if name == "served" else several
    return Conditions(**common)


def condition_lines(conditions: ByModel, models: Sequence[str], *, judged: bool = True) -> tuple[str, ...]:
    """Lines for a table over `models`: who judged them, if anybody did, then what each of them is."""
    groups: dict[str, dict[str, None]] = {}
    for kind in ("judged", "made") if judged else ("made",):
        for (model, _), found in conditions.items():
            if model in models:
                groups.setdefault(getattr(found, kind), {})[code(model)] = None
    return tuple(f"{', '.join(names)}: {text}." for text, names in groups.items())
