"""The graph of a study: for each cell, a row with a seed, the commands that lead to its scores.

What several cells need stands in it once. A cell's digest is that of all commands on the way to it, without the folder
and with the RL config's text: a cell that was made by other settings is another one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shapes import recipe
from shapes.judges import VERIFIER
from shapes.recipe import CONFIG, ROOT, SFT_BATCH
from shapes.stages import ADDRESS, Server, Task, module
from shapes.study.rows import JUDGES, REPORTED, BestOf, Rl, Row, Same, Sft, Sizes

GROUP, PROMPTS = 8, 16  # of a step of RL, as in its config
SPEED = 22_000
"""Tokens times passes that a core does in a second, roughly: the first guess of what a task will take."""


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of prompts and completions, the latter also with a chain of thought."""

    prompt: float = 42.0
    completion: float = 36.0
    thinking: float = 165.0

    def passes(self, steps: int, think: bool, rl: bool) -> float:
        """Tokens times passes of a training run. A forward pass counts 1, a backward one 2. Of each completion RL has
        three forward passes (sampled, under the policy, under the reference) and a backward one, of each prompt, which
        stands before its whole group once, as many."""
        written = self.thinking if think else self.completion
        if rl:
            return steps * PROMPTS * (self.prompt + GROUP * written) * 5
        return steps * SFT_BATCH * (self.prompt + written) * 3


@dataclass(frozen=True)
class Cell:
    """A row of a seed. tasks: all on the way to its scores, the last one scores. own: those that no other row has.
    folder: of predictions and scores; model: of the checkpoint."""

    row: str
    seed: int
    tasks: tuple[str, ...]
    folder: Path
    model: Path
    digest: str

    @property
    def file(self) -> str:
        return f"{self.row}-s{self.seed}-{self.digest}.json"


@dataclass
class Graph:
    """Tasks by name, in the order in which cells asked for them. samples: of each benchmark. costs: core-seconds that
    each task may take."""

    folder: Path
    sizes: Sizes
    rows: dict[str, Row]
    samples: int
    tasks: dict[str, Task] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)

    def servers(self) -> dict[str, Server]:
        return {name: recipe.judge(self.folder, name, **options) for name, options in JUDGES.items()}

    def cell(self, name: str, seed: int) -> Cell:
        """Add what leads to a cell's scores."""
        row, home = self.rows[name], self.folder / f"s{seed}"
        model, trained = self._model(name, seed)
        data, written = (home / "data/held_out.parquet", f"s{seed}-data") if not row.table else self._benchmarks(seed)
        output = home / "eval" / (f"{name}-n{self.samples}" if row.table else name)
        more: dict[str, Any] = {}
        if isinstance(row.how, BestOf):
            more = {"best_of": row.how.n, "judge_url": ADDRESS, "judge_model": VERIFIER.model}
        if row.think:
            more = {"think": [], "think_tokens": self.sizes.think_tokens}
        edits = 2 * self.sizes.preset.data.held_out if not row.table else 6 * self.samples
        made = self._add(
            f"s{seed}-evaluate{f'-n{self.samples}' if row.table else ''}:{name}",
            recipe.evaluate(name, model / "final", home / "vision", data, output, seed, **more),
            (trained, written),
            cost=8 + edits * (0.2 if row.think else 0.03) * more.get("best_of", 1),
            server=recipe.JUDGE if more.get("judge_url") else "",
        )
        scored = self._add(made.replace("evaluate", "score"), recipe.score(output), (made,), 4, server=recipe.JUDGE)
        return Cell(name, seed, self.closure([scored]), output, model, self._digest(scored))

    def closure(self, names: Iterable[str]) -> tuple[str, ...]:
        """The tasks and all that they need, each after what it needs."""
        found: dict[str, None] = {}
        for name in names:
            for one in (*self.closure(self.tasks[name].needs), name):
                found.setdefault(one)
        return tuple(found)

    def passes(self, name: str, lengths: Lengths) -> tuple[float, float]:
        """Tokens times passes of a row's last training, and of all trainings on the way to it."""
        if name == "base":
            own = lengths.passes(self.sizes.steps("base"), False, False)
            return own, own
        how = self.rows[name].how
        if isinstance(how, Same | BestOf):
            return self.passes(how.model, lengths)
        steps = self.sizes.steps("rl") * how.times if isinstance(how, Rl) else self.sizes.steps(how.steps)
        own = lengths.passes(steps, how.think, isinstance(how, Rl))
        return own, own + self.passes(how.start, lengths)[1]

    def _add(self, name: str, command: Any, needs: tuple[str, ...], cost: float, **more: Any) -> str:
        self.tasks.setdefault(name, Task(name, (command,), needs, **more))
        self.costs.setdefault(name, cost)
        return name

    def _start(self, seed: int) -> None:
        preset, passes = self.sizes.preset, Lengths().passes
        trained = {"pretrain": preset.pretrain_steps, "sft_s": preset.sft_steps}
        known = {"data": 5 + preset.data.simple / 1000, "vision": preset.tokenizer_steps / 36}
        known |= {"tokenize": 15 + preset.data.simple / 800}
        known |= {name: 15 + passes(steps, False, False) / SPEED for name, steps in trained.items()}
        for task in recipe.start(self.folder / f"s{seed}", preset, seed, f"s{seed}-", ranks=1):
            self.tasks.setdefault(task.name, task)
            self.costs.setdefault(task.name, known[task.name.partition("-")[2]])

    def _benchmarks(self, seed: int) -> tuple[Path, str]:
        """Folder of the six benchmarks and the task that writes it: one for all seeds, another for development."""
        name = f"benchmarks-n{self.samples}{'-dev' if seed < REPORTED else ''}"
        dev: dict[str, Any] = {"dev": []} if seed < REPORTED else {}
        folder = self.folder / name
        return folder, self._add(name, module("shapes.benchmarks", output=folder, rows=self.samples, **dev), (), 10)

    def _model(self, name: str, seed: int) -> tuple[Path, str]:
        """Folder of a row's training run, and the task that trains it."""
        self._start(seed)
        home = self.folder / f"s{seed}"
        if name in ("base", "sft_s"):
            return home / name, f"s{seed}-{'pretrain' if name == 'base' else name}"
        how = self.rows[name].how
        if isinstance(how, Same | BestOf):
            return self._model(how.model, seed)
        start, needs = self._model(how.start, seed)
        task, cost = f"s{seed}-{name}", self.passes(name, Lengths())[0] / SPEED
        if task not in self.tasks:
            sets, shares, needed = self._edits(how, seed)
            if isinstance(how, Sft):
                thought: dict[str, Any] = {"cot_keys": ["reasoning_verbose"]} if how.think else {}
                steps = self.sizes.steps(how.steps)
                command = recipe.sft(start / "final", home / name, sets, shares, steps, seed, **thought)
                self._add(task, command, (needs, *needed), 15 + cost)
            else:
                settings = [
                    f"run_name={name}",
                    f"model={start / 'final'}",
                    f"data.sets={json.dumps(list(map(str, sets)))}",
                    f"data.coefficients={json.dumps(shares)}",
                    *([f"rollout.think_tokens={self.sizes.think_tokens}"] if how.think else []),
                    *(["rollout.ahead=1", "objective.importance_cap=2"] if how.ahead else []),
                ]
                steps = self.sizes.steps("rl") * how.times
                self.tasks[task] = recipe.rl(task, home, (needs, *needed), steps, seed, 1, *settings, server=how.judge)
                self.costs[task] = 20 + cost * (1.3 if how.think else 1)
        return home / name, task

    def _edits(self, how: Sft | Rl, seed: int) -> tuple[list[Path], list[float], tuple[str, ...]]:
        """Sets of a training, their coefficients, and the tasks that write those of its own."""
        home, preset = self.folder / f"s{seed}", self.sizes.preset
        tokens = home / "tokens"
        needed: tuple[str, ...] = ()
        simple, pairs = tokens / "simple", tokens / "complex"
        if how.targets is not None:
            pairs = tokens / how.targets.name
            needed = (self._targets(how, seed),)
        if how.edits == "s":
            # SFT (S) has few complex edits, so that RL has a first signal; RL (S) has none.
            return (
                ([simple, pairs], [1.0, preset.complex_share], needed)
                if isinstance(how, Sft)
                else ([simple], [1.0], needed)
            )
        if how.edits == "c":
            return [pairs], [1.0], needed
        # What RL sees, and what is set against it on the map, is one mixture.
        as_rl = isinstance(how, Rl) or how.steps == "more"
        each, more = self.sizes.rl_shares if as_rl else self.sizes.sft_shares
        count = preset.data.complex if how.targets is None else how.targets.pairs
        return [simple, pairs], [each, round(more * preset.data.complex / count, 4)], needed

    def _targets(self, how: Sft | Rl, seed: int) -> str:
        """The task that tokenizes complex pairs of their own."""
        targets, home = how.targets, self.folder / f"s{seed}"
        assert targets is not None
        sizes = replace(
            self.sizes.preset.data,
            simple=1,
            held_out=1,
            pictures=1,
            complex=targets.pairs,
            nuisance_share=targets.share,
            nuisance_strength=targets.strength,
        )
        data = home / "data" / targets.name
        written = self._add(f"s{seed}-data-{targets.name}", recipe.write_data(data, sizes, seed), (), 5)
        tokenize = recipe.tokenize(data / "complex.parquet", home / "tokens" / targets.name, home / "vision")
        return self._add(f"s{seed}-tokenize-{targets.name}", tokenize, (written, f"s{seed}-vision"), 10)

    def _digest(self, name: str) -> str:
        """16 hexadecimal digits."""
        task = self.tasks[name]
        parts = [
            [[self._plain(str(part)) for part in command] for command in task.commands],
            {key: self._plain(value) for key, value in task.environment.items()},
            [JUDGES[task.server], hashlib.sha256(CONFIG.read_bytes()).hexdigest()] if task.server else [],
            sorted(self._digest(needed) for needed in task.needs),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def _plain(self, text: str) -> str:
        return text.replace(str(self.folder), "RUN").replace(str(ROOT), "HERE")

    def digests(self, names: Sequence[str]) -> dict[str, str]:
        return {name: self._digest(name) for name in names}
