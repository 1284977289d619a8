"""The options of tokenize, convert and sft, read before anything large is imported.

Fields keep the names that Python code uses; options have those that all commands have (`emu3.flags`).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NoReturn

from emu3.errors import UserError
from emu3.flags import CommandParser, add_fields, flag_of, parse_fields, renamed, underscored
from emu3.settings import PRODUCT, Product, check_numbers, setting
from emu3.tokenizer.images import MAX_AREA


@dataclass(frozen=True, kw_only=True)
class WorkerArguments:
    """The flags of every command that writes shards; these names with dashes. Raises UserError for wrong values."""

    output_path: str = field(metadata={"flag": "--output", "help": "folder for shards and manifest"})
    image_area: int = setting("of a resized image", 65536, least=1, most=MAX_AREA, unit="pixels")
    shard_rows: int = setting(
        "input rows of one shard, the most that a worker that is killed loses", 4096, least=1, most=2**31
    )
    rank: int = setting("this worker", lambda: int(os.environ.get("RANK", "0")), least=0)
    world_size: int = setting("number of workers", lambda: int(os.environ.get("WORLD_SIZE", "1")), least=1)

    def __post_init__(self) -> None:
        check_numbers(self, lambda name: f"--{name.replace('_', '-')}")
        if not 0 <= self.rank < self.world_size:
            raise UserError(f"--rank {self.rank} is not below --world-size {self.world_size}")


def _option(default: Any, text: str, *aliases: str, **more: str) -> Any:
    return field(default=default, metadata={"help": text, "aliases": list(aliases), **more})


@dataclass(frozen=True, kw_only=True)
class PrepareArguments(WorkerArguments):
    """What the command takes; the flags are these names with dashes. Raises UserError for wrong values."""

    dataset_name: str = field(
        metadata={
            "flag": "--data",
            "help": "Hub id or id@revision; Parquet files, an image folder with a JSONL or CSV file, a saved dataset; "
            "or your own reader, file.py:name",
        }
    )
    model_path: str = _option(
        "BAAI/Emu3-VisionTokenizer", "vision tokenizer: a folder, Hub id or id@revision", flag="--vision"
    )
    original_image_key: str = _option("source_image", "column of the source image")
    edit_instruction_key: str = _option("instruction", "column of the instruction", "--edit-instruction")
    edited_image_key: str | None = _option(None, "column of the target image, if there is one", "--edited-image")
    cot_keys: list[str] = field(
        default_factory=list,
        metadata={"help": "columns of reasoning text; boxes in it are rescaled", "aliases": ["--CoT-keys"]},
    )
    id_key: str | None = _option(None, "column of the row's id; default: its number")
    task_key: str | None = _option(None, "column of the kind of edit")
    source: Literal["HF", "local"] = _option("HF", "where the dataset is")
    split: str | None = _option(None, "files whose path names it; default: train on the Hub, all of a folder")
    config_name: str | None = _option(None, "configuration of a dataset on the Hub")
    data_files: list[str] = field(default_factory=list, metadata={"help": "take the files of these patterns alone"})
    random_seed: int | None = setting("--limit takes rows at random by this seed; default: the first", None, least=0)
    limit: int | None = setting("use this many rows at most", None, least=1)


@dataclass(frozen=True, kw_only=True)
class ConvertArguments(WorkerArguments):
    """What the command takes; the flags are these names with dashes. Raises UserError for wrong values."""

    data: str = field(metadata={"help": "OUT, the folder with list/ and the .pth files, or the list itself"})
    archive: str | None = _option(None, "tar or zip to unpack as --data, unless that is there")
    model_path: str | None = _option(None, "vision tokenizer that the codes are from", flag="--vision")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.archive is not None and self.world_size > 1:
            raise UserError("one worker unpacks an archive: call this once without emu3.launch, or unpack it first")


@dataclass(frozen=True)
class SftArguments:
    """What decides the training besides the Trainer's own arguments."""

    model_name_or_path: str = field(metadata={"flag": "--model", "help": "checkpoint folder or Hub id to start from"})
    train_data: list[str] = field(metadata={"flag": "--data", "help": "folders written by prepare_data"})
    eval_data: list[str] = field(default_factory=list, metadata={"help": "folders for the evaluation loss"})
    coefficients: list[float] | None = setting(
        "share of each training set, above 1 repeats; left out: smaller sets are upsampled to the largest",
        None,
        above=0,
        most=1e6,
    )
    cot_keys: list[str] = field(default_factory=list, metadata={"help": "train to reason first, with these texts"})
    reasoning_missing: Literal["plain", "drop", "refuse"] = field(
        default="plain",
        metadata={
            "help": "rows that have none of --cot_keys: plain edits, as published, or left out, or the end of the run"
        },
    )
    changed_token_weight: float = setting(
        "loss weight of target codes that differ from the source", 1.0, above=0, most=1e6
    )
    prompt_token_weight: float = setting(
        "loss weight of the prompt's tokens; 0: loss on the target only", 0.0, least=0, most=1e6
    )
    dropout: float = setting(
        "rate on embeddings, attention and both branches of each layer; the published models had 0.1",
        0.0,
        least=0,
        below=1,
    )
    lora_rank: int = setting("train adapters of this rank alone; 0: all weights", 0, least=0, most=65536)
    lora_alpha: float = setting("adapters are scaled by alpha / rank", 64.0, above=0, most=1e6)
    early_stopping_patience: int | None = setting(
        "end after this many evaluations without a smaller loss; default: do not", None, least=1
    )
    tokenizer_path: str | None = field(
        default=None, metadata={"flag": "--tokenizer", "help": "text tokenizer folder (default: the model's)"}
    )
    attn_implementation: str = field(
        default="sdpa", metadata={"help": "sdpa, eager (faster for short sequences on a CPU), flash_attention_2, ..."}
    )
    product: Product = field(default="plain", metadata={"help": PRODUCT})
    max_position_embeddings: int | None = setting("longest sequence in tokens; default: the model's", None, least=1)
    image_area: int | None = setting("refuse data of another image area", None, least=1)
    validation_size: int | None = setting("evaluate on this many random rows", None, least=1)


def parse_prepare() -> PrepareArguments:
    """Those of the command line. Raises UserError for what is wrong with them."""
    return parse_fields(PrepareArguments, "Tokenize a dataset of edits: rows with images in, shards of codes out.", {})


def parse_convert() -> ConvertArguments:
    """As `parse_prepare`."""
    return parse_fields(ConvertArguments, "Turn published tokenized data into shards of codes.", {})


Renamed = Mapping[str, tuple[str, Callable[[str], str]]]
"""By a flag's older name, without its dashes: the present flag, and what becomes of a value."""


PUBLISHED_FLAGS: Renamed = {
    "data_paths": ("--train_data", str),
    "validation_paths": ("--eval_data", str),
    "evaluation_strategy": ("--eval_strategy", str),
    "random_seed": ("--data_seed", str),
    "attn_type": ("--attn_implementation", lambda kind: "flash_attention_2" if kind == "fa2" else "sdpa"),
    "min_learning_rate": ("--lr_scheduler_kwargs", '{{"min_lr": {}}}'.format),
}
"""What the published command calls them."""


def present_flags(arguments: Sequence[str], renamed: Renamed) -> list[str]:
    """`arguments` under the present names, with one line on standard error if there were others."""
    found: list[str] = []
    said: dict[str, str] = {}
    change: Callable[[str], str] | None = None  # of the value that comes next
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and name in renamed:
            now, becomes = renamed[name]
            said[flag] = now
            argument, change = (f"{now}={becomes(value)}", None) if equals else (now, becomes)
        elif change is not None:
            argument, change = change(argument), None
        found.append(argument)
    if said and os.environ.get("RANK", "0") == "0":
        print(f"note: {', '.join(f'{flag} is {now} here' for flag, now in said.items())}", file=sys.stderr)
    return found


TRAINER = {"--output": "--output_dir", "--help-all": "--help"}
"""Options that the Trainer calls otherwise."""


def check_sft() -> None:
    """Print our own options for `--help`, and refuse wrong values of them; the Trainer's are not known yet."""
    if "--help-all" in sys.argv[1:]:
        return
    parser = CommandParser(
        description="Supervised fine-tuning: source and instruction in, edited image out.",
        epilog="Everything else is an option of transformers' Trainer, such as --learning_rate, --max_steps, --bf16 "
        "and --deepspeed; --help-all lists them too.",
        old=underscored(SftArguments) | {"--output_dir": "--output"},
    )
    parser.add_argument("--output", required=True, help="folder of the run; its final/ is the model")
    add_fields(parser, SftArguments)
    with contextlib.redirect_stderr(None):  # who parses it all says what was renamed
        known = present_flags(sys.argv[1:], PUBLISHED_FLAGS)
    parser.parse_known_args(known)


def parse_sft(trainer: type) -> list[Any]:
    """`SftArguments`, and an instance of `trainer`, transformers' TrainingArguments.

    Raises UserError for an unknown flag, a missing or wrong value, and whatever the Trainer refuses.
    """
    check_sft()
    from transformers.hf_argparser import DataClassType, HfArgumentParser

    class Parser(HfArgumentParser):
        def add_argument(self, *names: Any, number: Any = None, flag: str | None = None, **options: Any) -> Any:
            """number, flag: of our fields, which transformers hands on."""
            return super().add_argument(*names, **options)

        def error(self, message: str) -> NoReturn:
            raise UserError(f"{message} (--help lists all options)")

    ours = {flag_of(item): f"--{item.name}" for item in fields(SftArguments)}
    parser = Parser([DataClassType(SftArguments), DataClassType(trainer)], description="Supervised fine-tuning.")
    try:
        *instances, unknown = parser.parse_args_into_dataclasses(
            renamed(present_flags(sys.argv[1:], PUBLISHED_FLAGS), ours | TRAINER),
            return_remaining_strings=True,
            look_for_args_file=False,
        )
    except (ValueError, ImportError) as error:  # what TrainingArguments refuses, or lacks a package for
        raise UserError(" ".join(str(error).split())) from error
    if unknown:
        raise UserError(f"unknown option {unknown[0]} (--help lists all options)")
    return instances
