"""A plain completion, a key, and a judge that is asked one question."""

from __future__ import annotations

from typing import Any

from stub_judge import with_judge

from rl.reward.client import Judge
from rl.reward.config import JudgeConfig

GOOD = '{"score": [8, 7], "reasoning": "fine"}'
COMPLETION = {
    "id": "c",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": GOOD}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 7},
}
KEY = "sk-very-secret-0123456789/abc"


def ask(url: str, **settings: Any) -> Any:
    settings = {"attempts": 2, "deadline": 20.0} | settings
    return with_judge(
        Judge(JudgeConfig(url, **settings)), lambda judge: judge.ask("q", [], lambda text: "score" in text)
    )
