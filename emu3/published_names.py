"""Files of the published repository whose work is done elsewhere here: what stands at their places says where.

    python -m emu3.published_names [NAME]

A file at such a place is a stand-in of two lines. Where the present command takes the published arguments the stand-in
runs it, with a line on standard error; elsewhere that line is all, and the exit code 2. All names that are kept, with
those of variables and flags, are in docs/published-names.md.
"""

from __future__ import annotations

import runpy
import sys

from emu3.errors import UserError, run_main

RUN = {
    "rl/nano_aha_moment.py": "rl.train",
    "emu3/train_image_editing/train_image_editing.py": "emu3.train_image_editing.sft",
}
"""Names of the same command lines as the modules that do the work."""

ADVICE = {
    "rl/simple_launch.py": "python -m emu3.launch --ranks N rl.train CONFIG.jsonnet",
    "rl/test_distributed_env.py": "bash scripts/check_node.sh",
    "rl/scripts/qwen_node.sh": "bash scripts/reward_server.sh, with Slurm sbatch scripts/slurm/judge.sbatch",
    "rl/scripts/grpo_rl_job.sh": "bash scripts/rl.sh CONFIG, with Slurm sbatch scripts/slurm/rl.sbatch CONFIG",
    "rl/scripts/setup_datasets.sh": (
        "hf download mair-lab/earl-datasets --repo-type dataset --local-dir FOLDER, then for each of its sets "
        "python -m emu3.train_image_editing.convert_published --data FOLDER/SET/train "
        "--output-path data/earl-datasets/SET/train --model-path BAAI/Emu3-VisionTokenizer"
    ),
    "baselines/gen_viescore.py": (
        "python -m baselines.score --predictions results/BENCHMARK/MODEL-seed0 --judge-url https://api.openai.com/v1 "
        "--protocol published --prompts VIEScore"
    ),
}
"""Instead of other names."""


def stand_in(name: str) -> None:
    """Do what the published file `name` did, or raise a UserError that says how to."""
    if name == "rl/simple_launch.py" and len(sys.argv) > 3 and sys.argv[1] == "--nproc":
        script = sys.argv[3].removeprefix("./")
        _run(name, "emu3.launch", ["--ranks", sys.argv[2], RUN.get(script, script), *sys.argv[4:]])
    elif name in RUN:
        _run(name, RUN[name], sys.argv[1:])
    else:
        raise UserError(f"{name} is not here; instead: {ADVICE[name]}")


def _run(name: str, module: str, arguments: list[str]) -> None:
    print(f"note: {name} is python -m {module} here", file=sys.stderr)
    if sys.path[0].endswith(name.rpartition("/")[0]):
        del sys.path[0]  # a script's own folder, whose modules could be taken for others
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main() -> None:
    if len(sys.argv) > 1:
        stand_in(sys.argv.pop(1))
    for name in (*RUN, *ADVICE):
        print(f"{name}: {ADVICE.get(name) or f'python -m {RUN[name]}'}")


if __name__ == "__main__":
    run_main(main)
