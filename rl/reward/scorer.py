"""Scores in the background: rollouts are handed over as they are sampled and judged while sampling goes on.

One thread runs one event loop in which all requests to the judge live; the trainer holds a future for each
image. Of a `Scorer` that is closed, the futures that are not done are cancelled, so nobody waits for ever.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import AbstractContextManager

from PIL import Image

from rl.reward.counters import JudgeStep
from rl.reward.scores import Outcome
from rl.reward.viescore import Metric


class Scorer(AbstractContextManager["Scorer"]):
    """A thread that scores with `metric`, whose judge it closes at its end.

    judge_name: the model that is asked.
    Raises `UserError` at the start if the judge cannot be used.
    """

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._lock = threading.Lock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="scorer", daemon=True)
        self._thread.start()
        try:
            self.judge_name = asyncio.run_coroutine_threadsafe(metric.judge.model_name(), self._loop).result()
        except BaseException:
            self.close()
            raise

    def submit(
        self, instruction: str, source: Image.Image, edited: Image.Image, target: Image.Image | None = None
    ) -> Future[Outcome]:
        """Begin to score and return at once. target: the dataset's own edit, where the metric needs it. The future
        raises only what is a bug, and `CancelledError` after `close`. Raises `RuntimeError` if the scorer is closed."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the scorer is closed")
            return asyncio.run_coroutine_threadsafe(self._metric.score(instruction, source, edited, target), self._loop)

    def counters(self) -> dict[str, float]:
        """What happened so far, as `JudgeCounters.as_dict`."""
        return self._metric.judge.counters.as_dict()

    def step(self) -> JudgeStep:
        """What happened since the last call, for `judge_metrics`. Raises `RuntimeError` if the scorer is closed."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the scorer is closed")
            return asyncio.run_coroutine_threadsafe(self._read_step(), self._loop).result()

    def close(self, seconds: float = 10.0) -> None:
        """Cancel what is not scored, close the connections and end the thread, waiting for it at most `seconds`."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(seconds)

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            # Leaving the runner cancels every task, and with it the future that its submitter holds.
            runner.run(self._serve())

    async def _read_step(self) -> JudgeStep:
        return self._metric.judge.step()

    async def _serve(self) -> None:
        await self._stop.wait()
        await self._metric.judge.aclose()
