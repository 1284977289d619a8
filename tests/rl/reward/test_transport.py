"""What needs no server: which way a request takes, and a key in every spelling."""

from __future__ import annotations

import socket
from base64 import b64encode
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from emu3.errors import UserError
from rl.reward.client import Judge
from rl.reward.config import JudgeConfig
from rl.reward.transport import Transport, _proxy_of

KEY = "sk-very-secret-0123456789/abc"


@pytest.mark.parametrize("host", ["127.1", "2130706433", "localhost.", "[::ffff:127.0.0.1]", socket.gethostname()])
def test_every_spelling_of_this_machine_goes_round_a_proxy(monkeypatch: Any, host: str) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "example.org,10.0.0.0/8,fd00::/8")
    assert _proxy_of(f"http://{host}:4877/v1") == (None, "")
    for inside in ("10.1.2.3", "[fd00::1]", "judge.example.org"):
        assert _proxy_of(f"http://{inside}:4877/v1") == (None, "")
    assert _proxy_of("http://11.1.2.3:4877/v1")[0] == "http://127.0.0.1:9"


@pytest.mark.parametrize(
    "spell", [quote, lambda key: quote(key, safe=""), str.upper, lambda key: b64encode(key.encode()).decode()]
)
def test_a_key_is_taken_out_however_it_is_spelled(spell: Callable[[str], str]) -> None:
    """Guards a server that quotes the request's address or header in a spelling of its own."""
    transport = Transport("http://127.0.0.1:1/v1", KEY)
    assert transport.without_key(f"a {spell(KEY)} b") == "a [key] b"


def test_an_address_with_a_key_is_refused_and_not_shown() -> None:
    """Guards: a key in the address, which stands in every log and in the scores' settings."""
    with pytest.raises(UserError, match="OPENAI_API_KEY") as caught:
        Judge(JudgeConfig(f"http://127.0.0.1:1/v1?api_key={KEY}"))
    assert "sk-very" not in str(caught.value)
