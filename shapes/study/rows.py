"""What the study measures: each row of a table and each point of the map, and how its model is made.

A row is called as the paper's model is known here (`baselines/tables/published.json`), so that its published scores
stand beside it. `ROWS` is read from top to bottom: what is made of what, on which edits. Data are `s`, simple edits,
`c`, complex ones, and `sc`, both; the mixtures keep the meaning of the published coefficients (`Sizes`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from shapes.recipe import PRESETS, RL_SHARES, Preset

REPORTED = 10
"""The first of the seeds that are reported. On those before it settings are chosen; they have benchmark rows of their
own."""

Edits = Literal["s", "c", "sc"]


@dataclass(frozen=True)
class Sizes:
    """Sizes of a study, beside those of the quickstart's preset, whose start (data, tokenizer, base, SFT) it shares.

    sft_shares, rl_shares: how often simple and complex edits are seen in a pass of S+C. In the paper SFT has 750,000
    simple rows beside complex sets of 50,000 rows each, 300,000 in all, so 5 : 2, RL 100,000 beside the same, so 1 : 3.
    two_stage: its steps as a share of those of SFT (S), in the paper 1,200 of 11,600. more: steps of the SFT that the
    map sets against RL from the same start, at no less compute. think_tokens: longest chain of thought.
    """

    preset: Preset
    sft_shares: tuple[float, float] = (1.0, 9.6)
    rl_shares: tuple[float, float] = RL_SHARES
    two_stage: float = 0.1
    think_tokens: int = 256

    def steps(self, what: str) -> int:
        """Optimizer steps of `base`, `sft`, `two_stage`, `more` and `rl`."""
        preset = self.preset
        known = {"base": preset.pretrain_steps, "sft": preset.sft_steps, "more": preset.control_steps}
        known |= {"rl": preset.rl_steps, "two_stage": max(1, round(self.two_stage * preset.sft_steps))}
        return known[what]


def _sizes(name: str) -> Sizes:
    preset = PRESETS[name]
    # 300 held-out rows of each kind are the map's; the tables have benchmarks of their own.
    return Sizes(replace(preset, data=replace(preset.data, held_out=min(300, preset.data.held_out))))


SIZES = {name: _sizes(name) for name in PRESETS}


@dataclass(frozen=True)
class Targets:
    """Complex pairs of their own: so many, and how noisy their targets are (`shapes.write_data`)."""

    pairs: int
    share: float
    strength: int

    @property
    def name(self) -> str:
        return f"complex_{self.pairs}_{self.share:g}x{self.strength}"


@dataclass(frozen=True)
class Sft:
    """SFT of `start` (`base`, or a row) for `steps`. targets: other complex pairs than the study's."""

    start: str
    edits: Edits
    steps: Literal["sft", "two_stage", "more"] = "sft"
    think: bool = False
    targets: Targets | None = None


@dataclass(frozen=True)
class Rl:
    """GRPO of `start` for `times` the steps, with the scores of `judge`, one of `JUDGES`. ahead: each step is sampled
    before the one before it is trained (`rollout.ahead`)."""

    start: str
    edits: Edits
    times: int = 1
    judge: str = "judge"
    think: bool = False
    targets: Targets | None = None
    ahead: bool = False


@dataclass(frozen=True)
class BestOf:
    """The best of `n` edits of a row's model, picked by the judge that scores it."""

    model: str
    n: int = 5


@dataclass(frozen=True)
class Same:
    """A row's model as it is."""

    model: str


How = Sft | Rl | BestOf | Same


@dataclass(frozen=True)
class Row:
    """table: the paper's that it belongs to, 0 for a point of the map. published: its model's name there, where that is
    not the row's own. place: where a point stands on the map: axis, place on it, and line."""

    label: str
    table: int
    how: How
    published: str = ""
    place: tuple[str, float, str] | None = None

    @property
    def think(self) -> bool:
        return isinstance(self.how, Sft | Rl) and self.how.think


JUDGES: dict[str, dict[str, float]] = {
    "judge": {},
    "judge_coarse": {"coarse": 3},
    "judge_noisy": {"noise": 2.0},
    "judge_biased": {"bias": 2.0},
}
"""Judges of RL by name, and the options of `shapes.judge_server` that make them weak. The first scores all tables."""
JUDGE_NOISE = (1.0, 2.0, 4.0)
"""Standard deviation of a judge's noise on the map, in points."""
JUDGES |= {
    f"judge_noise{noise:g}": {"noise": noise} for noise in JUDGE_NOISE if noise != JUDGES["judge_noisy"]["noise"]
}

ROWS: dict[str, Row] = {
    "sft_s": Row("SFT (S)", 2, Sft("base", "s")),
    "sft_s__rl_sc": Row("SFT (S) → RL (S+C)", 2, Rl("sft_s", "sc")),
    "sft_sc": Row("SFT (S+C)", 2, Sft("base", "sc")),
    "sft_sc2stage": Row("SFT (S+C) two-stage", 2, Sft("sft_s", "c", "two_stage")),
    "sft_s__rl_s": Row("SFT (S) → RL (S)", 2, Rl("sft_s", "s")),
    "sft_s__rl_c": Row("SFT (S) → RL (C)", 2, Rl("sft_s", "c")),
    "sft_sc__rl_sc": Row("SFT (S+C) → RL (S+C)", 2, Rl("sft_sc", "sc")),
    "sft_sc__rl_c": Row("SFT (S+C) → RL (C)", 2, Rl("sft_sc", "c")),
    "sft_sc2stage__rl_sc": Row("two-stage → RL (S+C)", 2, Rl("sft_sc2stage", "sc")),
    "sft_sc2stage__rl_c": Row("two-stage → RL (C)", 2, Rl("sft_sc2stage", "c")),
    "earl": Row("EARL: SFT (S) → RL (S+C), twice the steps", 2, Rl("sft_s", "sc", times=2)),
    "sft_s_best5": Row("SFT (S), best of 5", 11, BestOf("sft_s")),
    "sft_s__rl_sc_best5": Row("SFT (S) → RL (S+C), best of 5", 11, BestOf("sft_s__rl_sc")),
    **{
        f"sft_s__rl_sc_{kind}": Row(
            f"SFT (S) → RL (S+C), {kind} judge", 6, Rl("sft_s", "sc", judge=f"judge_{kind}"), "sft_s__rl_sc_7b"
        )
        for kind in ("coarse", "noisy", "biased")
    },
    "sft_think_s": Row("SFT think (S)", 3, Sft("base", "s", think=True)),
    "sft_think_s__rl_sc": Row("SFT think (S) → RL (S+C)", 3, Rl("sft_think_s", "sc", think=True)),
    "sft_think_sc2stage": Row("SFT think (S+C) two-stage", 3, Sft("sft_think_s", "c", "two_stage", think=True)),
    "sft_think_s__rl_s": Row("SFT think (S) → RL (S)", 3, Rl("sft_think_s", "s", think=True)),
    "sft_think_s__rl_c": Row("SFT think (S) → RL (C)", 3, Rl("sft_think_s", "c", think=True)),
    "sft_sc__rl_s": Row("SFT (S+C) → RL (S), not in the paper", 2, Rl("sft_sc", "s")),
    "sft_sc2stage__rl_s": Row("two-stage → RL (S), not in the paper", 2, Rl("sft_sc2stage", "s")),
    "sft_s__rl_sc_ahead": Row(
        "SFT (S) → RL (S+C), sampled a step ahead, not in the paper", 2, Rl("sft_s", "sc", ahead=True)
    ),
}
FIVE = ("sft_s", "sft_s__rl_sc", "sft_sc", "sft_sc2stage", "sft_s_best5")
"""Rows of the shortest budget."""

TARGET_NOISE = {0.0: (0.0, 1), 0.7: (0.7, 1), 1.4: (0.7, 2), 2.0: (1.0, 2), 0.35: (0.35, 1), 1.0: (1.0, 1)}
"""Unrelated changes per complex target on average, and the share and strength that make them; the first four are those
of the shorter budget."""
AXES = {
    "target noise": "unrelated changes in a complex target, on average",
    "complex pairs": "number of complex pairs",
    "judge noise": "noise of the judge in training, standard deviation in points",
}
LINES = {"sft": "more SFT (S+C)", "rl": "RL (S+C)", "start": "their start, SFT (S)"}


def map_rows(sizes: Sizes) -> dict[str, Row]:
    """The points of the map, each on the held-out edits of the quickstart. RL reads no target, so over their noise its
    line is one run; over the number of pairs both lines have runs of their own."""
    data = sizes.preset.data
    here = (data.nuisance_share, data.nuisance_strength)
    found = {
        "map_start": Row("start of the map", 0, Same("sft_s"), place=("target noise", 0.0, "start")),
        "map_rl": Row("RL (S+C) on the map", 0, Same("sft_s__rl_sc"), place=("target noise", 0.0, "rl")),
    }
    for noise, (share, strength) in TARGET_NOISE.items():
        own = None if (share, strength) == here else Targets(data.complex, share, strength)
        more = Sft("sft_s", "sc", "more", targets=own)
        found[f"map_sft_noise{noise:g}"] = Row(
            f"more SFT (S+C), noise {noise:g}", 0, more, "", ("target noise", noise, "sft")
        )
    for noise in JUDGE_NOISE:
        known = {"noise": noise} == JUDGES["judge_noisy"]
        rl = Same("sft_s__rl_sc_noisy") if known else Rl("sft_s", "sc", judge=f"judge_noise{noise:g}")
        found[f"map_rl_judge{noise:g}"] = Row(
            f"RL (S+C), judge's noise {noise:g}", 0, rl, "", ("judge noise", noise, "rl")
        )
    for pairs in (data.complex // 4, data.complex * 4):
        targets = Targets(pairs, *here)
        place = ("complex pairs", float(pairs))
        found[f"map_sft_pairs{pairs}"] = Row(
            f"more SFT (S+C), {pairs} pairs", 0, Sft("sft_s", "sc", "more", targets=targets), "", (*place, "sft")
        )
        found[f"map_rl_pairs{pairs}"] = Row(
            f"RL (S+C), {pairs} pairs", 0, Rl("sft_s", "sc", targets=targets), "", (*place, "rl")
        )
    return found


@dataclass(frozen=True)
class Budget:
    """hours: in which runs begin. samples: of each benchmark. rows: in groups; each group is made for all seeds before
    the next one."""

    hours: float
    samples: int
    seeds: int
    groups: tuple[tuple[str, ...], ...] = field(default_factory=tuple)


def _group(*tables: int) -> tuple[str, ...]:
    return tuple(name for name, row in ROWS.items() if row.table in tables and "not in the paper" not in row.label)


def budgets(sizes: Sizes) -> dict[str, Budget]:
    points = list(map_rows(sizes))
    first = tuple(name for name in points if name in ("map_start", "map_rl") or name.startswith("map_sft_noise"))[:6]
    rest = tuple(name for name in points if name not in first)
    table_2 = _group(2)
    leftover = tuple(name for name in ROWS if name not in (*table_2, *_group(3, 6, 11)))
    everything = (FIVE, first, table_2, _group(11, 6), _group(3)[:2], rest, _group(3), leftover)
    return {
        "30m": Budget(0.5, 100, 1, (FIVE,)),
        "3h": Budget(3, 100, 1, (FIVE[:4], first, table_2, everything[3])),
        "night": Budget(10, 200, 3, everything),
        "all": Budget(float("inf"), 200, 3, everything),
        "page": Budget(0, 200, 3, everything),
    }
