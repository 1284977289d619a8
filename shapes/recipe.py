"""The commands of the embedded world's pipeline and their sizes, for the quickstart and the study: one recipe for both.

Each function returns the command that a person would type. Paths are those of a run's folder: `data`, `vision`, `init`,
`tokens/NAME`, and each model's folder by its name.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shapes.scene import HEIGHT, WIDTH
from shapes.stages import ADDRESS, Command, Server, Task, module
from shapes.write_data import DataSpec

VERSION = 2
"""Of what is below and no size; 1 pretrained with AdamW. A run's folder does not mix two."""
ROOT = Path(__file__).parent.parent
AREA = HEIGHT * WIDTH
CORES = 2
SFT_BATCH = 16
CONFIG = ROOT / "rl/configs/shapes.jsonnet"
RL_SHARES = (0.125, 9.0)
"""How often simple and complex edits are seen in a pass of RL, and of the SFT that is set against it: one to three, as
in the paper, of 24,000 and 1,000."""
JUDGE = "judge"
"""The server whose scores are reported."""


@dataclass(frozen=True)
class Preset:
    """Sizes of a run. Steps are optimizer steps: pretraining and SFT of 16 rows, RL of 16 prompts with 8 rollouts each.

    complex_share: share of the complex set in pretraining and in the simple SFT, so that RL has a first signal; 1 is
    once per pass. control_steps: as many tokens times passes as `rl_steps`: a completion has three forward passes there
    and a backward one, which counts two, its prompt an eighth of them.
    """

    data: DataSpec = field(default_factory=DataSpec)
    tokenizer_steps: int = 1800
    pretrain_steps: int = 2000
    sft_steps: int = 1600
    rl_steps: int = 350
    control_steps: int = 2500
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


def write_data(folder: Path, spec: DataSpec, seed: int) -> Command:
    sizes = {name: value for name, value in asdict(spec).items() if name != "seed"}
    return module("shapes.write_data", output_dir=folder, seed=seed, **sizes)


def train_vision(data: Path, folder: Path, steps: int, seed: int) -> Command:
    return module("emu3.tokenizer.train", data=data / "pictures.parquet", output_dir=folder, steps=steps, seed=seed)


def new_model(data: list[Path], vision: Path, folder: Path, seed: int) -> Command:
    return module("shapes.new_model", data=data, vision=vision, output_dir=folder, seed=seed)


def tokenize(data: Path, output: Path, vision: Path) -> Command:
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


def pretrain(
    start: Path, output: Path, data: list[Path], shares: list[float] | None, steps: int, seed: int, ranks: int = 1
) -> Command:
    """The stand-in for Emu3's pretraining; without shares, the smaller datasets are upsampled to the largest."""
    return module(
        "shapes.pretrain",
        ranks=ranks,
        model=start,
        data=data,
        coefficients=shares,
        output=output,
        steps=steps,
        batch_size=SFT_BATCH,
        seed=seed,
    )


def sft(
    start: Path,
    output: Path,
    data: list[Path],
    shares: list[float] | None,
    steps: int,
    seed: int,
    ranks: int = 1,
    **more: Any,
) -> Command:
    """SFT on several sets; without shares, the smaller ones are upsampled to the largest. more: further options."""
    return module(
        "emu3.train_image_editing.sft",
        ranks=ranks,
        model_name_or_path=start,
        train_data=data,
        coefficients=shares,
        output_dir=output,
        changed_token_weight=4,
        per_device_train_batch_size=SFT_BATCH // ranks,
        max_steps=steps,
        learning_rate=1e-3,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs='{"min_lr": 5e-5}',
        warmup_steps=50,
        weight_decay=0.01,
        adam_beta2=0.95,
        attn_implementation="sdpa",
        use_cpu=True,
        logging_steps=20,
        save_steps=max(1, steps // 4),
        save_total_limit=1,
        seed=seed,
        **more,
    )


def start(folder: Path, preset: Preset, seed: int, prefix: str = "", ranks: int = CORES) -> list[Task]:
    """From nothing to `sft_s`, fine-tuned on mostly simple edits: what every comparison shares. prefix: of the tasks'
    names, which are those of the stages. ranks: of each training; one leaves the other cores to other tasks."""
    data, tokens, vision = folder / "data", folder / "tokens", folder / "vision"
    pairs = [data / f"{name}.parquet" for name in ("simple", "complex", "complex_clean")]
    seen, shares = [tokens / "simple", tokens / "complex"], [1.0, preset.complex_share]
    base = pretrain(folder / "init", folder / "base/final", seen, shares, preset.pretrain_steps, seed, ranks)
    simple = sft(folder / "base/final", folder / "sft_s", seen, shares, preset.sft_steps, seed, ranks)
    make = (
        new_model(pairs, vision, folder / "init", seed),
        *(tokenize(file, tokens / file.stem, vision) for file in pairs),
    )

    def task(name: str, needs: str, cores: int, *commands: Command) -> Task:
        return Task(prefix + name, commands, (prefix + needs,) if needs else (), cores)

    return [
        task("data", "", ranks, write_data(data, preset.data, seed)),
        task("vision", "data", 1, train_vision(data, vision, preset.tokenizer_steps, seed)),
        task("tokenize", "vision", 1, *make),
        task("pretrain", "tokenize", ranks, base),
        task("sft_s", "pretrain", ranks, simple),
    ]


def rl(
    name: str, folder: Path, needs: tuple[str, ...], steps: int, seed: int, ranks: int, *more: str, server: str = JUDGE
) -> Task:
    """GRPO with the scores of a judge. folder: the run's; more: further settings, `key=value`."""
    return Task(
        name,
        (module("rl.train", CONFIG, f"steps={steps}", f"seed={seed}", *more, ranks=ranks),),
        needs,
        cores=ranks,
        server=server,
        environment={
            "APP__BASE_EXP_DIR": str(folder),
            "APP__DATA_DIR": str(folder / "tokens"),
            "APP__REWARD_FUNCTION_API_BASE": ADDRESS,
        },
    )


def judge(folder: Path, name: str = JUDGE, **options: Any) -> Server:
    """The world's judge. options: of `shapes.judge_server`, which make another one of it."""
    address = folder / f"{name}.url"
    return Server(module("shapes.judge_server", port=0, port_file=address, **options), address)


def evaluate(name: str, model: Path | None, vision: Path, data: Path, output: Path, seed: int, **more: Any) -> Command:
    """Predictions of a model, or of the editor that is called `name`. data: rows as shapes.write_data's."""
    return module(
        "baselines.evaluate",
        editor="emu3" if model else name,
        model=model,
        vision=vision if model else None,
        name=name,
        data=data,
        original_image_key="input",
        edit_instruction="instruction",
        edited_image="output",
        task_key="task",
        id_key="id",
        output_dir=output,
        image_area=AREA,
        seed=seed,
        **more,
    )


def score(predictions: Path) -> Command:
    """Scores by the judge that runs as the task's server."""
    return module("baselines.score", predictions=predictions, judge_url=ADDRESS)
