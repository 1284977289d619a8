"""Whether a machine is ready, on one page and in minutes, before anything large is loaded.

    bash scripts/check_node.sh
    python -m rl.check_node --only machine judge --output node.json

Each check is `ok`, `fails` or `skipped`, with one line: what was found, and what to do. Ends with code 0 if none
fails, 1 if one does, 2 for options that do not exist. docs/check-node.md says what each of them means.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emu3.errors import UserError, run_main
from emu3.files import write_json
from emu3.flags import CommandParser
from emu3.settings import COUNT, number_in
from rl.check_node.check import ROOT, Check, CheckResult, Node, Shared, bounded

WHOLE_RUN = 1300.0
"""Seconds for what starts several processes; the commands that it starts are bounded by themselves."""


def checks() -> dict[str, list[Check]]:
    """All of them, by group, in the order of the page. What they need takes seconds to import."""
    from rl.check_node import arithmetic, hub_checks, judge, machine, runs

    return {
        "machine": [
            Check("gpus", machine.gpus, 180),
            Check("ranks", machine.ranks, 300),
            Check("memory", machine.main_memory, 120),
            Check("shm", machine.shared_memory, 60),
            Check("disk", machine.disk, 120),
            Check("packages", machine.packages, 60),
        ],
        "published": [
            Check("hub", hub_checks.access, 60),
            *(Check(model.name, hub_checks.checkpoint, 180, (model,)) for model in hub_checks.released()),
        ],
        "judge": [Check("judge", judge.judge, 400)],
        "fast": [
            Check("fp32", arithmetic.fast_paths, 300, ("fp32",)),
            Check("bf16", arithmetic.fast_paths, 300, ("bf16",)),
        ],
        "runs": [
            Check("vllm", runs.sampler, 600),
            Check("sft", runs.sft, WHOLE_RUN),
            Check("rl", runs.rl, WHOLE_RUN),
            Check("full-size", runs.full_size, WHOLE_RUN),
        ],
    }


def chosen(only: Sequence[str], skip: Sequence[str]) -> list[Check]:
    """The checks that `only` names (all without it) and `skip` does not, by their names or their groups'.

    Raises UserError for a name that is none.
    """
    groups = checks()
    known = {*groups, *(check.name for group in groups.values() for check in group)}
    for name in (*only, *skip):
        if name not in known:
            own = ", ".join(f"{group} ({', '.join(check.name for check in groups[group])})" for group in groups)
            raise UserError(f"there is no check {name!r}; there are {own}")

    def named(names: Sequence[str], group: str, check: Check) -> bool:
        return group in names or check.name in names

    return [
        check
        for group, members in groups.items()
        for check in members
        if (not only or named(only, group, check)) and not named(skip, group, check)
    ]


def visible_gpus() -> int:
    """As scripts/environment.sh counts them, with which the other scripts start their ranks."""
    script = ROOT / "scripts" / "environment.sh"
    if not script.is_file():
        raise UserError("rl.check_node runs from a checkout of the project: its scripts are not here")
    done = subprocess.run(["bash", "-c", 'source "$0"; gpu_count', str(script)], capture_output=True, text=True)
    if done.returncode or not done.stdout.strip().isdecimal():
        raise UserError(f"the GPUs cannot be counted: {done.stderr.strip()[-200:]}")
    return int(done.stdout)


def report(node: Node, results: Sequence[CheckResult]) -> dict[str, Any]:
    """`node.json`: what was found, without what is nobody's business."""
    shared = Shared(os.environ, [node.judge or ""])
    kernel = re.match(r"\d+(\.\d+)*", platform.release())
    return {
        "written": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        "commit": _commit(),
        "system": f"{platform.system()} {kernel[0] if kernel else ''} {platform.machine()}",
        "gpus": node.gpus,
        "checks": [
            {
                "name": result.name,
                "status": result.status,
                "line": shared.text(result.line),
                "seconds": round(result.seconds, 1),
                "cpu_seconds": None if result.cpu_seconds is None else round(result.cpu_seconds, 1),
                "facts": shared.value(result.facts),
            }
            for result in results
        ],
    }


def _commit() -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def main() -> None:
    parser = CommandParser(old={"--judge": "--judge-url"}, description=__doc__)
    names = "machine, published, judge, fast, runs, or single checks"
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=f"these checks: {names}")
    parser.add_argument("--skip", nargs="+", default=[], metavar="NAME", help="all but these")
    parser.add_argument(
        "--output", type=Path, default=Path("node.json"), help="file for a bug report (default: %(default)s)"
    )
    parser.add_argument(
        "--run-folder",
        type=Path,
        default=Path(os.environ.get("APP__BASE_EXP_DIR") or "runs/rl"),
        help="whose disk is measured (default: APP__BASE_EXP_DIR, or runs/rl)",
    )
    parser.add_argument(
        "--judge-url",
        dest="judge",
        default=os.environ.get("APP__REWARD_FUNCTION_API_BASE") or None,
        metavar="URL",
        help="address up to and with /v1 (default: APP__REWARD_FUNCTION_API_BASE)",
    )
    parser.add_argument(
        "--judge-concurrency", type=COUNT, default=64, metavar="N", help="questions at once (default: %(default)s)"
    )
    parser.add_argument(
        "--judge-seconds",
        type=number_in(float, above=0, most=1e6),
        default=5.0,
        metavar="S",
        help="seconds of questions (default: %(default)s)",
    )
    options = parser.parse_args()
    selected = chosen(options.only, options.skip)
    node = Node(visible_gpus(), options.run_folder, options.judge, options.judge_concurrency, options.judge_seconds)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # and so end what is under way
    results: list[CheckResult] = []
    for check in selected:
        results.append(bounded(check, node))
        print(results[-1], flush=True)
        write_json(options.output, report(node, results))
    counts = Counter(result.status for result in results)
    seconds = sum(result.seconds for result in results)
    print(
        f"{counts['ok']} ok, {counts['fails']} fail, {counts['skipped']} skipped in {seconds:.0f} s; "
        f"{options.output} holds this for a bug report"
    )
    raise SystemExit(1 if counts["fails"] else 0)


if __name__ == "__main__":
    run_main(main)
