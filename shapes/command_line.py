"""`earl`: every command of the project under one name.

    earl --help
    earl edit --model M photo.jpg "make the sky purple"
    earl rl --ranks 4 rl/configs/earl.jsonnet optimizer.lr=1e-6

A subcommand is a module's `main`, which can be run as `python -m MODULE` as well; it is imported when it is asked for,
so that `earl --help` answers at once. Those that train or encode take `--ranks N` as their first argument, for N
processes on this machine. It stands in this package because only this one may know all others.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from emu3.errors import UserError, run_main

DISTRIBUTION = "earl-image-editing"
"""Name of what pip installs."""


@dataclass(frozen=True)
class Command:
    """`module` has a `main`. several: whether it may run in several processes. arguments: `module:function` that reads
    the command line before `module`, which takes seconds, is imported."""

    module: str
    summary: str
    several: bool = False
    arguments: str = ""


TOKENS = "emu3.train_image_editing.arguments"

COMMANDS = {
    "edit": Command("emu3.edit", "edit images by instruction"),
    "demo": Command("emu3.demo.__main__", "the same in a browser"),
    "tokenize": Command(
        "emu3.train_image_editing.prepare_data", "images to shards of codes", True, f"{TOKENS}:parse_prepare"
    ),
    "convert": Command(
        "emu3.train_image_editing.convert_published",
        "the published .pth data to shards",
        True,
        f"{TOKENS}:parse_convert",
    ),
    "sft": Command("emu3.train_image_editing.sft", "supervised fine-tuning on shards", True, f"{TOKENS}:check_sft"),
    "rl": Command("rl.train", "GRPO with a judge's score", True, "rl.config_file:train_arguments"),
    "estimate": Command(
        "rl.watch.estimate",
        "memory and time of an RL run, before it is started",
        False,
        "rl.config_file:estimate_arguments",
    ),
    "annotate": Command("rl.annotate.__main__", "chains of thought for training data, by a vision-language model"),
    "evaluate": Command("baselines.evaluate", "predictions of an editor on a benchmark"),
    "score": Command("baselines.score", "scores of predictions, by a judge or by other metrics"),
    "table": Command("baselines.table", "scores to tables with intervals"),
    "paper-tables": Command("baselines.paper_tables", "the paper's tables, ours beside the published ones"),
    "report": Command("baselines.report", "one page of scores and images"),
    "agreement": Command("baselines.agreement", "a judge against another, itself or people"),
    "export": Command("emu3.export", "a checkpoint with its card, ready for a hub"),
    "check-node": Command("rl.check_node.__main__", "whether a machine is ready"),
    "quickstart": Command("shapes.quickstart", "the whole pipeline in the embedded world"),
    "study": Command("shapes.study.__main__", "the paper's tables and claims in the embedded world"),
}


def main() -> None:
    """Run one subcommand. Raises UserError for an unknown one."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(), file=sys.stdout if arguments else sys.stderr)
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        print(f"earl {installed_version()}")
        return
    name, *rest = arguments
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        raise UserError(f"earl has no command {name!r}{f', the nearest is {near[0]!r}' if near else ''}: earl --help")
    command = COMMANDS[name]
    sys.argv = [f"earl {name}", *rest]
    if rest[:1] == ["--ranks"] or (rest and rest[0].startswith("--ranks=")):
        ranks, rest = _ranks(name, rest)
        sys.argv[1:] = rest
        _check(command)
        if ranks > 1:
            from emu3.launch import launch

            sys.exit(launch(ranks, command.module, rest))
    _check(command)
    importlib.import_module(command.module).main()


def _check(command: Command) -> None:
    """End with --help or an error, where the command line asks for it, before anything large is imported."""
    if command.arguments:
        module, _, function = command.arguments.partition(":")
        getattr(importlib.import_module(module), function)()


def _ranks(name: str, arguments: Sequence[str]) -> tuple[int, list[str]]:
    """Number of processes, and the other arguments."""
    if not COMMANDS[name].several:
        raise UserError(f"earl {name} runs in one process: it takes no --ranks")
    text, rest = (arguments[0].partition("=")[2], arguments[1:])
    if not text:
        text, rest = (arguments[1] if len(arguments) > 1 else "", arguments[2:])
    if not text.isdecimal() or not int(text):
        raise UserError(f"earl {name} --ranks: expected a number of processes, 1 or more, got {text!r}")
    return int(text), list(rest)


def usage() -> str:
    """What `earl --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    several = ", ".join(name for name, command in COMMANDS.items() if command.several)
    return "\n".join(
        [
            "usage: earl COMMAND ...",
            "",
            "Autoregressive image editing with Emu3: supervised fine-tuning, GRPO with a judge's score, evaluation.",
            "",
            *lines,
            "",
            "  earl COMMAND --help   its options, with units and defaults",
            "  earl --version",
            "",
            f"{several}: --ranks N as the first argument runs N processes on this machine.",
        ]
    )


def installed_version() -> str:
    """Of the installed distribution; from a checkout that was never installed, that there is none."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "(not installed)"


def run() -> None:
    """The console command."""
    run_main(main)


if __name__ == "__main__":
    run()
