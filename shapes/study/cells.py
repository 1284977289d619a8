"""A cell's results as one small JSON file: scores by sample, what they were made by, where and when.

These files are kept (`assets/study/cells`), and the page is made of them alone: a later sitting, or another machine,
makes only what is missing. A cell that failed has a file, too, with its reasons; it is tried again by the next sitting.
"""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from baselines.results.records import SCORED, SCORES_FILE, VIESCORE, ScoredSample
from baselines.tables.conditions import Conditions, read_scores
from emu3.errors import UserError
from emu3.files import read_json, whole_file
from emu3.report.metrics_file import NAME, read_lines
from emu3.run_folder import check_version
from shapes.study.graph import Cell, Lengths

VERSION = 1
DECIMALS = 4
POINTS = 40
"""Of a kept reward curve."""
BENCHMARKS = {
    "simple": "OmniEdit",
    "reworded": "EmuEdit",
    "actions": "AURORA",
    "crowded": "MB",
    "counting": "VisMin",
    "restoration": "I2EBench",
}
"""The embedded benchmarks, and the column of the paper's tables that each stands for."""
HELD_OUT = {"held_out_simple": "simple", "held_out_complex": "complex"}
"""The quickstart's held-out rows, on which the map stands, and their kind."""


@dataclass(frozen=True)
class Result:
    """A finished cell. scores: by benchmark the scores of its rows in their order, None for a failure. seconds and
    core_seconds: of its own tasks. passes: tokens times passes of its last training and of all of them. reward: means
    over equal parts of an RL run. failures: reasons of earlier tries."""

    row: str
    seed: int
    digest: str
    date: str = ""
    machine: str = ""
    seconds: float = 0.0
    core_seconds: float = 0.0
    passes: tuple[float, float] = (0.0, 0.0)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    reward: Sequence[float] = ()
    failures: Sequence[str] = ()

    @property
    def samples(self) -> list[ScoredSample]:
        """Its scores as the tables take them. Held-out rows are each seed's own, those of a benchmark are shared."""
        found = []
        for benchmark, values in self.scores.items():
            own = f"s{self.seed}_" if benchmark in HELD_OUT else ""
            for number, value in enumerate(values):
                status = "failed" if value is None else SCORED
                found.append(
                    ScoredSample(
                        id=f"{own}{number}",
                        benchmark=benchmark,
                        split=HELD_OUT.get(benchmark, "all"),
                        task="",
                        source_set="",
                        model=self.row,
                        editor="emu3",
                        metric=VIESCORE,
                        status=status,
                        value=value,
                        parts={},
                        answers={},
                        detail=None,
                        run=f"seed {self.seed}",
                    )
                )
        return found

    @property
    def made_under(self) -> Conditions:
        return Conditions(**{**self.conditions, "served": tuple(self.conditions.get("served", ()))})


def read_result(file: Path) -> Result | None:
    """None where there is no such file."""
    if not file.is_file():
        return None
    found = read_json(file)
    check_version(file, found, VERSION)
    found.pop("version")
    try:
        return Result(**{**found, "passes": tuple(found["passes"])})
    except (TypeError, KeyError) as error:
        raise UserError(f"{file} is no cell of a study ({error}): remove it") from None


def write_result(folder: Path, result: Result) -> Path:
    """Write `ROW-sSEED-DIGEST.json`, a line for each of its fields."""
    file = folder / f"{result.row}-s{result.seed}-{result.digest}.json"
    lines = [
        f"{json.dumps(name)}: {json.dumps(value)}" for name, value in {"version": VERSION, **asdict(result)}.items()
    ]
    with whole_file(file) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return file


def collect(
    cell: Cell, costs: Sequence[Mapping[str, float]], passes: tuple[float, float], before: Result | None
) -> Result:
    """The result of a cell whose tasks are done. costs: of its own tasks, as `stages.json` has them."""
    samples, conditions = read_scores([cell.folder / SCORES_FILE])
    [about] = conditions.values()
    scores: dict[str, dict[int, float | None]] = {}
    for sample in samples:
        benchmark, number = benchmark_of(sample.id)
        scores.setdefault(benchmark, {})[number] = None if sample.value is None else round(sample.value, DECIMALS)
    return Result(
        row=cell.row,
        seed=cell.seed,
        digest=cell.digest,
        date=datetime.date.today().isoformat(),
        machine=machine(),
        seconds=round(sum(cost["seconds"] for cost in costs), 1),
        core_seconds=round(sum(cost["core_seconds"] for cost in costs), 1),
        passes=(round(passes[0]), round(passes[1])),
        conditions=asdict(about),
        scores={name: [rows[number] for number in sorted(rows)] for name, rows in sorted(scores.items())},
        reward=_reward(cell.model),
        failures=before.failures if before else (),
    )


def benchmark_of(sample: str) -> tuple[str, int]:
    """Benchmark and number of a row, from the id that `shapes.benchmarks` or `shapes.write_data` gave it."""
    benchmark, _, number = sample.rpartition("_")
    return benchmark.removesuffix("_dev"), int(number)


def failed(cell: Cell, reason: str, before: Result | None) -> Result:
    """A cell without scores, with one reason more."""
    now = before or Result(cell.row, cell.seed, cell.digest)
    today = datetime.date.today().isoformat()
    return replace(now, date=today, machine=machine(), failures=[*now.failures, f"{today}: {reason}"])


def machine() -> str:
    """The processor's name, and how many of them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


def lengths(tokens: Path, init: Path) -> Lengths:
    """Mean tokens of the training rows: of prompts, of completions, and of completions with a chain of thought."""
    from emu3.mllm.text_tokenizer import TextTokenizer
    from emu3.train_image_editing.dataset import EncodedRows
    from emu3.train_image_editing.shards import read_rows

    tokenizer, rows = TextTokenizer.from_pretrained(init), read_rows(tokens)
    found = []
    for keys in ((), ("reasoning_verbose",)):
        encoded = EncodedRows(rows, tokenizer, keys, 1 << 20)
        examples = [encoded[place] for place in range(min(300, len(encoded)))]
        found.append([sum(one.start for one in examples), sum(len(one.tokens) - one.start for one in examples)])
        count = len(examples)
    return Lengths(*(round(total / count, 1) for total in (found[0][0], found[0][1], found[1][1])))


def _reward(run: Path) -> list[float]:
    """Means of `POINTS` equal parts of an RL run's rewards; none of another run."""
    by_step = {line["step"]: line.get("reward") for line in (read_lines(run) if (run / NAME).is_file() else ())}
    rewards = [float(reward) for _, reward in sorted(by_step.items()) if reward is not None]
    return [round(float(part.mean()), 3) for part in np.array_split(rewards, POINTS) if len(part)]
