"""The stages that are killed: the commands that a user types, on a tiny world of random weights and small scenes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from rl.check_node.runs import AREA, make_world, write_config
from shapes.stages import Command, module
from shapes.write_data import DataSpec, write

CHAIN = "1. A thing.\n2. The thing.\n3. It is at [0, 0, 28, 28].\n4. It changes.\n5. Another thing."
QUICKSTART = """
from shapes import quickstart
from shapes.write_data import DataSpec
data = DataSpec(simple=40, complex=12, held_out=4, pictures=40)
quickstart.PRESETS["smoke"] = quickstart.Preset(data, 20, 6, 6, 2, 6)
quickstart.run_main(quickstart.main)
"""


@dataclass(frozen=True)
class Stage:
    """A command that is killed. command: from the folder that it writes. given: a folder that is there before its first
    start, or None. long: it is also sent each signal once."""

    name: str
    command: Callable[[Path], Command]
    given: Path | None = None
    long: bool = False


def make_stages(world: Path, judge: str) -> dict[str, Stage]:
    """The stages by name. world: an empty or earlier folder, which gets models and images. judge: its address."""
    if not (world / "ready").exists():
        shutil.rmtree(world, ignore_errors=True)
        make_world(world)
        write(DataSpec(simple=12, complex=4, held_out=4, pictures=2), world / "images", workers=1)
        (world / "ready").touch()
    write_config(world, judge, "local", 2)
    stages = [
        Stage("tokenize", lambda out: _tokenize(world, out), long=True),
        Stage("sft", lambda out: _sft(world, out), long=True),
        Stage("sft-zero", lambda out: _sft(world, out, zero=True), long=True),
        Stage("rl", lambda out: _rl(world, out), long=True),
        Stage("rl-zero", lambda out: _rl(world, out, zero=True), long=True),
        Stage("annotate", lambda out: _annotate(world, out, judge), long=True),
        Stage("evaluate", lambda out: _evaluate(world, out), long=True),
        Stage("score", lambda out: _score(out, judge), world / "predictions", long=True),
        Stage("table", lambda out: module("baselines.table", scores=world / "scores/scores.parquet", output_dir=out)),
        Stage("report", lambda out: module("baselines.report", run_dir=out), world / "run"),
        Stage("export", lambda out: _export(world, out)),
        Stage("quickstart", lambda out: ["-c", QUICKSTART, "--preset", "smoke", "--output-dir", out], long=True),
    ]
    return {stage.name: stage for stage in stages}


def make_results(world: Path, judge: str) -> None:
    """Predictions, scores and a table, which the evaluation's later stages read; made once."""
    if (world / "run").exists():
        return
    for name in ("predictions", "scores", "unfinished"):
        shutil.rmtree(world / name, ignore_errors=True)
    _call(_evaluate(world, world / "predictions"))
    shutil.copytree(world / "predictions", world / "scores")
    _call(_score(world / "scores", judge))
    shutil.copytree(world / "scores", world / "unfinished/eval/emu3")
    _call(module("baselines.table", scores=world / "scores/scores.parquet", output_dir=world / "unfinished"))
    (world / "unfinished").rename(world / "run")


def _call(command: Command) -> None:
    subprocess.run([sys.executable, *map(str, command)], check=True, stdout=subprocess.DEVNULL)


def _tokenize(world: Path, out: Path) -> Command:
    return module(
        "emu3.train_image_editing.prepare_data",
        source="local",
        dataset_name=world / "images/simple.parquet",
        output_path=out,
        model_path=world / "vision",
        original_image_key="input",
        edit_instruction_key="instruction",
        edited_image_key="output",
        image_area=AREA,
        shard_rows=1,
    )


def _sft(world: Path, out: Path, zero: bool = False) -> Command:
    return module(
        "emu3.train_image_editing.sft",
        ranks=2 if zero else 1,
        model_name_or_path=world / "model",
        train_data=world / "data",
        output_dir=out,
        per_device_train_batch_size=2,
        max_steps=6,
        save_steps=1,
        save_total_limit=2,
        logging_steps=1,
        attn_implementation="sdpa",
        use_cpu=True,
        **({"deepspeed": Path("scripts/zero3.json").absolute(), "bf16": True} if zero else {}),
    )


def _rl(world: Path, out: Path, zero: bool = False) -> Command:
    keys = [f"output_dir={out.parent}", f"run_name={out.name}", "steps=4", "save_every=1"]
    keys += ["compute.zero=2"] if zero else ["compute.zero=0", "compute.precision=fp32"]
    return module("rl.train", world / "run.jsonnet", *keys, ranks=2 if zero else 1)


def _annotate(world: Path, out: Path, judge: str) -> Command:
    return module(
        "rl.annotate",
        dataset_name=world / "images/simple.parquet",
        source="local",
        output_path=out,
        judge_url=judge,
        original_image_key="input",
        edited_image_key="output",
        edit_instruction_key="instruction",
        part_rows=1,
    )


def _evaluate(world: Path, out: Path) -> Command:
    return module(
        "baselines.evaluate",
        editor="emu3",
        name="emu3",
        model=world / "model",
        vision=world / "vision",
        data=world / "images/held_out.parquet",
        original_image_key="input",
        edit_instruction="instruction",
        edited_image="output",
        task_key="task",
        id_key="id",
        output_dir=out,
        image_area=AREA,
        batch_size=1,
    )


def _score(out: Path, judge: str) -> Command:
    return module("baselines.score", predictions=out, judge_url=judge, metrics=["viescore", "l1"], judge_concurrency=1)


def _export(world: Path, out: Path) -> Command:
    return module("emu3.export", model=world / "model", vision=world / "vision", name="org/name", output=out / "export")


@contextmanager
def steady_judge() -> Iterator[str]:
    """The address of a judge whose reply is a function of the question: scores, or a chain of thought where that is
    what is asked for. It lives as long as the context."""
    server = _Server(("127.0.0.1", 0), _Judge)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Clients are killed in the middle of a request: that is what this is for."""


class _Judge(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._reply({"object": "list", "data": [{"id": "steady", "object": "model"}]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        scores = json.dumps({"reasoning": "none", "score": [zlib.crc32(body) % 11, 10]})
        text = CHAIN if re.search(rb"five numbered steps", body) else scores
        message = {"role": "assistant", "content": text}
        self._reply(
            {
                "id": "steady",
                "object": "chat.completion",
                "created": 0,
                "model": "steady",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            }
        )

    def _reply(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing is printed per request."""
