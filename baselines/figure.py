"""A run as one image for a README: reward curve, means with intervals, and edits of two models side by side.

    python -m baselines.figure --run-dir runs/x --candidate sft_s__rl_sc --reference sft_s --output assets/run.png \
        --label sft_s__rl_sc="GRPO after SFT"

The edits are not chosen by eye: in each split, the samples at fixed ranks of the candidate's score, good and bad.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from PIL import Image

from baselines.page.gallery import TINY
from baselines.page.run_folder import SCALE_END, RunFolder, add_label_flag, read_run_folder
from baselines.results.records import VIESCORE, Prediction
from baselines.tables.statistics import RESAMPLES, add_resampling_flags
from baselines.tables.summary import Row, by_split, groups_of, summarise
from emu3.errors import UserError, run_main
from emu3.files import whole_file
from emu3.flags import CommandParser
from emu3.report.charts import running_mean

INK, SOFT, LINE = "#1b1d21", "#5c636e", "#e3e6ea"
CANDIDATE, REFERENCE, OTHER, BOUND = "#c2410c", "#2563a8", "#5c636e", "#757d89"
RANKS = (0.95, 0.75, 0.5, 0.25)
"""Where in the order of the candidate's scores the shown samples stand; 0.5 is the median."""

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.parse_math": False,  # instructions and names are text
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


def run(
    run_dir: Path,
    *,
    output: Path,
    candidate: str,
    reference: str,
    labels: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Path:
    """Draw a run folder that holds scores, predictions and metrics.jsonl with a reward; returns `output`, a PNG.

    `candidate` and `reference` are the two models whose edits are shown, `labels` models in a reader's words. Raises
    `UserError` if a part is missing.
    """
    found = read_run_folder(run_dir, labels)
    found.check_model(candidate)
    if found.metric != VIESCORE:
        raise UserError(f"{run_dir} holds no VIEScore to draw")
    rows = summarise(found.scores, by_split, reference=reference, resamples=resamples, seed=seed)
    splits = groups_of(found.scores, by_split)
    colours = dict.fromkeys(found.models, OTHER) | dict.fromkeys(found.bounds, BOUND)
    colours |= {candidate: CANDIDATE, reference: REFERENCE}
    with mpl.rc_context():
        mpl.rcParams.update(STYLE)
        layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
        figure = Figure(figsize=(11, 7.8), dpi=160, facecolor="white", layout=layout)
        upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=[1, 1.45])[:, 0]
        axes = upper.subplots(1, 1 + len(splits), width_ratios=[1.25] + [1] * len(splits))
        _draw_reward(axes[0], found, candidate)
        for place, (split, ax) in enumerate(zip(splits, axes[1:], strict=True)):
            _draw_means(ax, [row for row in rows if row.split == split], found, colours, named=place == 0)
        draw_edits(lower, found, splits, candidate, reference)
        with whole_file(output) as temporary:
            # Without the version of matplotlib, the same run gives the same bytes.
            figure.savefig(temporary, format="png", metadata={"Software": None})
    return output


def _draw_reward(ax: Axes, found: RunFolder, candidate: str) -> None:
    rewards = {
        training.name: curve for training in found.trainings for curve in training.curves if curve.name == "Reward"
    }
    if not rewards:
        raise UserError("there is no metrics.jsonl with a reward to draw")
    curve = rewards.get(candidate) or next(iter(rewards.values()))
    smooth = running_mean(curve.values)
    if smooth != list(curve.values):  # a short curve is its own mean
        ax.plot(curve.steps, curve.values, color=CANDIDATE, alpha=0.25, linewidth=0.8, label="each step")
    ax.plot(curve.steps, smooth, color=CANDIDATE, linewidth=2, label="running mean")
    ax.set_title("Reward in training")
    ax.set_xlabel("step")
    ax.set_ylabel("score, 0 to 10")
    ax.set_ylim(0, SCALE_END)
    ax.legend(loc="best", frameon=False, labelcolor=SOFT)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    ax.margins(x=0)
    ax.grid(axis="x", visible=False)


def _draw_means(ax: Axes, rows: list[Row], found: RunFolder, colours: dict[str, str], *, named: bool) -> None:
    models = found.models
    places = {model: len(models) - index for index, model in enumerate(models)}
    for row in rows:
        if row.mean is None:
            continue
        place, colour = places[row.model], colours[row.model]
        ax.plot([0, row.mean], [place, place], color=colour, linewidth=6, alpha=0.25, solid_capstyle="butt")
        ax.plot(row.mean, place, "o", color=colour, markersize=5)
        if row.ci95 is not None:
            ax.plot(row.ci95, [place, place], color=colour, linewidth=2)
        ax.annotate(f"{row.mean:.2f}", (10.25, place), va="center", color=INK, annotation_clip=False)
    ax.set_xlim(0, SCALE_END)
    ax.set_xticks(range(0, 11, 2))
    ax.set_ylim(0.4, len(models) + 0.6)
    names = [textwrap.fill(found.label(model), 20) if named else "" for model in places]
    ax.set_yticks(list(places.values()), names)
    for label, model in zip(ax.get_yticklabels(), places, strict=True):
        label.set_color(colours[model])
    ax.set_title(f"Score, {rows[0].split} edits")
    ax.set_xlabel(f"mean with 95% interval, n = {max(row.n for row in rows)}")
    ax.grid(axis="y", visible=False)


def draw_edits(
    figure: Figure | SubFigure,
    found: RunFolder,
    splits: Sequence[str],
    candidate: str,
    reference: str,
    shares: Sequence[float] = RANKS,
) -> None:
    """Sources and both models' edits of the samples at `shares` of the order of the candidate's scores in each split.
    Raises `UserError` if no sample has a score of both."""
    columns = [row for split in splits for row in _ranked(found, split, candidate, reference, shares)]
    if not columns:
        raise UserError(f"no sample has a score of both {candidate!r} and {reference!r}")
    ranks = ", ".join(f"{100 * rank:g}" for rank in shares)
    heading = f"Edits at percentiles {ranks} of the score of {found.label(candidate)}: {', then '.join(splits)}"
    figure.suptitle(heading, x=0.008, ha="left", fontsize=11, fontweight="bold")
    axes = figure.subplots(3, len(columns), squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for place, sample in enumerate(columns):
        folder, row, _ = sample[candidate]
        _show(axes[0, place], folder / row.source)
        axes[0, place].set_title(
            "\n".join(textwrap.wrap(row.instruction, 22, max_lines=3, placeholder=" …")),
            fontsize=7,
            fontweight="normal",
            loc="center",
        )
        for ax, model in zip(axes[1:, place], (reference, candidate), strict=True):
            folder, row, value = sample[model]
            _show(ax, folder / row.edited)
            ax.set_xlabel(f"{value:.1f}", labelpad=2, color=INK)
    names = {"source": SOFT, reference: REFERENCE, candidate: CANDIDATE}
    for ax, (name, colour) in zip(axes[:, 0], names.items(), strict=True):
        ax.set_ylabel(textwrap.fill(found.label(name), 16), color=colour, fontweight="bold")


def _show(ax: Axes, path: Path) -> None:
    with Image.open(path) as image:
        # Small images show their pixels, as in the report.
        ax.imshow(image.convert("RGB"), interpolation="nearest" if image.width <= TINY else "antialiased")


ShownEdit = tuple[Path, Prediction, float]


def _ranked(
    found: RunFolder, split: str, candidate: str, reference: str, shares: Sequence[float] = RANKS
) -> list[dict[str, ShownEdit]]:
    """The samples of a split at `shares` of the order of the candidate's scores, among those that both models have a
    score for."""
    values = {(score.model, score.benchmark, score.id): score.value for score in found.scores if score.split == split}
    samples: dict[tuple[str, str], dict[str, ShownEdit]] = {}
    for folder, row in found.predictions:
        value = values.get((row.model, row.benchmark, row.id))
        if row.model in (candidate, reference) and value is not None:
            samples.setdefault((row.benchmark, row.id), {})[row.model] = (folder, row, value)
    both = sorted(
        (by_model for by_model in samples.values() if len(by_model) == 2), key=lambda sample: sample[candidate][2]
    )
    places = dict.fromkeys(round(rank * (len(both) - 1)) for rank in shares) if both else {}
    return [both[place] for place in places]


def main() -> None:
    parser = CommandParser(description="Draw a run folder as one PNG.")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--candidate", required=True, help="model whose gain is to be seen")
    parser.add_argument("--reference", required=True, help="model that it is compared with")
    add_label_flag(parser)
    add_resampling_flags(parser)
    print(run(**vars(parser.parse_args())))


if __name__ == "__main__":
    run_main(main)
