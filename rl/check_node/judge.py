"""The check of the judge, through the client that training uses; and a judge for runs that need none."""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median

from PIL import Image

from emu3.errors import UserError
from rl.check_node.check import Facts, Node, Skipped
from rl.config import JudgeConfig, RolloutConfig
from rl.reward.scores import Outcome, Score, Unavailable
from rl.scoring import start_scorer

SIDE = 256
"""Of the images, in pixels: the paper's size."""
QUESTIONS = 2
"""That VIEScore asks about an edit."""
INSTRUCTION = "make the square red"
DEADLINE = 60.0
"""Seconds for the reply to a question."""


def judge(node: Node) -> tuple[str, Facts]:
    """The model that is served, one score, and how many questions get a reply in a second.

    Every image is another one, so that nothing is answered from a cache, the server's prefix cache included.
    """
    if node.judge is None:
        raise Skipped(
            "APP__REWARD_FUNCTION_API_BASE is not set: start one (scripts/reward_server.sh), and name it there"
        )
    settings = JudgeConfig(node.judge, concurrency=node.concurrency, deadline=DEADLINE, attempts=2)
    with start_scorer(settings, 0) as scorer:
        start = time.monotonic()
        waiting = {scorer.submit(INSTRUCTION, _square(0, False), _square(0, True))}
        first = next((future.result() for future in wait(waiting, timeout=2 * DEADLINE).done), None)
        latency = time.monotonic() - start
        score = _score(first, scorer.judge_name)
        scorer.step()
        number, start = 1, time.monotonic()
        waiting = set()
        answered: list[Outcome] = []
        while time.monotonic() < start + node.judge_seconds:
            while len(waiting) < max(1, node.concurrency // QUESTIONS):
                waiting.add(scorer.submit(INSTRUCTION, _square(number, False), _square(number, True)))
                number += 1
            done, waiting = wait(waiting, timeout=node.judge_seconds, return_when=FIRST_COMPLETED)
            answered += [future.result() for future in done]
        done, late = wait(waiting, timeout=DEADLINE)
        answered += [future.result() for future in done]
        elapsed = time.monotonic() - start
        latencies = scorer.step().latencies
    scored = sum(isinstance(outcome, Score) for outcome in answered)
    per_second = QUESTIONS * scored / elapsed
    rollout = RolloutConfig()
    step = QUESTIONS * rollout.prompts_per_step * rollout.group_size
    facts = {
        "model": scorer.judge_name,
        "score": score.value,
        "first_seconds": latency,
        "questions_per_s": per_second,
        "concurrency": node.concurrency,
        "median_seconds": median(latencies) if latencies else None,
        "without_score": len(answered) - scored + len(late),
    }
    if facts["without_score"]:
        why = next((outcome for outcome in answered if not isinstance(outcome, Score)), None)
        raise UserError(
            f"{facts['without_score']} of {len(answered) + len(late)} edits got no score at {node.concurrency} "
            f"questions at once ({_reason(why)}): lower judge.concurrency, or see the server's log"
        )
    return (
        f"{scorer.judge_name} scores {score.value:.1f} of 10 in {latency:.1f} s; {per_second:.1f} questions per second "
        f"at {node.concurrency} at once, so {step} of a step take {step / per_second:.0f} s"
    ), facts


def _square(number: int, edited: bool) -> Image.Image:
    """A square on a ground whose colour is this number's own; red after the edit."""
    image = Image.new("RGB", (SIDE, SIDE), (64 + number % 128, 64 + number // 128 % 128, 200))
    image.paste((220, 20, 20) if edited else (120, 120, 120), (SIDE // 4, SIDE // 4, SIDE // 2, SIDE // 2))
    return image


def _score(outcome: Outcome | None, model: str) -> Score:
    if not isinstance(outcome, Score):
        raise UserError(f"{model} gave no score for two images: {_reason(outcome)}; is it a vision-language model?")
    return outcome


def _reason(outcome: Outcome | None) -> str:
    if isinstance(outcome, Unavailable):
        return outcome.reason
    return "no reply in time" if outcome is None else "its replies hold no scores"


def some_score(question: bytes) -> str:
    """A reply with scores that are a function of the question."""
    return json.dumps({"reasoning": "none", "score": [zlib.crc32(question) % 11, 10]})


@contextmanager
def stub_judge(reply: Callable[[bytes], str] = some_score) -> Iterator[str]:
    """The address of a judge on the loopback that gives `reply` to the body of each request; for runs that only have to
    run. It lives as long as the context."""
    server = _Server(("127.0.0.1", 0), _Stub)
    server.reply = reply
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    reply: Callable[[bytes], str]

    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever asked has been ended, which is no trouble of the judge's."""


class _Stub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._reply({"object": "list", "data": [{"id": "stub", "object": "model"}]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        text = self.server.reply(body)
        self._reply({"object": "chat.completion", "choices": [{"index": 0, "message": {"content": text}}]})

    def _reply(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """The page is for the checks."""
