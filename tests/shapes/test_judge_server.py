"""The judge over real HTTP, asked through the reward path that a vLLM endpoint would get, and in wrong ways."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
import urllib.request
import zlib
from typing import Any

import pytest
from edit_samples import edit_samples
from PIL import Image
from served_judge import Served

from emu3.errors import UserError
from rl.reward.client import Judge
from rl.reward.config import JudgeConfig
from rl.reward.scorer import Scorer
from rl.reward.scores import Score, Unavailable
from rl.reward.viescore import VieScore, load_prompts
from shapes.any_image import NOTICE
from shapes.edits import COMPLEX, SIMPLE
from shapes.edits.simple import Recolour
from shapes.judge_server import ANY_IMAGE, VERIFIER, serve


def scorer(served: Served) -> Scorer:
    return Scorer(VieScore(Judge(JudgeConfig(served.url)), load_prompts()))


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def png(width: int = 4, height: int = 4) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes that claims to have 10^10 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 10**5, 10**5, 8, 2, 0, 0, 0)
    return png()[:8] + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + png()[33:]


def chat(*content: Any) -> bytes:
    return json.dumps({"model": "any", "messages": [{"role": "user", "content": list(content)}]}).encode()


def image(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def test_scores_arrive_through_the_reward_path(verifier: Served) -> None:
    """Guards the line that both sides agree on, `Editing instruction: ...`, and the order of the four scores."""
    with scorer(verifier) as judged:
        for kind in (*SIMPLE, *COMPLEX):
            sample = next(edit_samples(kind, 1))
            source, target = sample.image(sample.before), sample.image(sample.after)
            truth = judged.submit(sample.instruction, source, target)
            copy = judged.submit(sample.instruction, source, source)
            ten = {"edit_success": 10.0, "overedit": 10.0, "naturalness": 10.0, "no_artifacts": 10.0}
            assert truth.result() == Score(10.0, {**ten, "sc": 10.0, "pq": 10.0})
            assert copy.result() == Score(0.0, {**ten, "edit_success": 0.0, "sc": 0.0, "pq": 10.0})


def test_an_instruction_from_elsewhere_has_no_score(verifier: Served) -> None:
    """A real photograph must come out as "not judged", never as a zero; and at once, since asking again is no use."""
    photograph = Image.new("RGB", (64, 40), (90, 120, 60))
    with scorer(verifier) as judged:
        outcome = judged.submit("Make them stand up", photograph, photograph).result()
        asked = judged.step().counts
    assert asked.get("retries", 0) == 0 and asked["unavailable"] > 0
    assert isinstance(outcome, Unavailable)
    assert "HTTP 400" in outcome.reason
    assert "no edit of this world: 'Make them stand up'" in outcome.reason


def test_any_image_scores_photographs_under_a_name_of_its_own(any_image: Served) -> None:
    """Its scores are no judgement, so nothing may take them for the verifier's: answers are kept by judge's name."""
    source, edited = Image.new("RGB", (64, 40), (90, 120, 60)), Image.new("RGB", (64, 40), (110, 140, 80))
    with scorer(any_image) as judged:
        assert isinstance(judged.submit("Make them stand up", source, edited).result(), Score)
        copy = judged.submit("Make them stand up", source, source).result()
    assert isinstance(copy, Score)
    assert copy.value == 0
    assert ANY_IMAGE.model != VERIFIER.model
    with urllib.request.urlopen(f"{any_image.url}/models") as reply:
        assert [model["id"] for model in json.load(reply)["data"]] == [ANY_IMAGE.model]
    status, body = any_image.post(chat(text("quality?"), image(data_url(png()))))
    assert status == 200
    assert json.loads(body["choices"][0]["message"]["content"])["reasoning"].startswith(NOTICE)


WRONG = {
    "no JSON": b"{",
    "no UTF-8": b'{"messages": "\xff"}',
    "no object": b"[]",
    "no messages": b"{}",
    "messages are a number": b'{"messages": 3}',
    "a message without content": b'{"messages": [{"role": "user"}]}',
    "no image": chat(text("Editing instruction: remove the red circle")),
    "three images": chat(*[image(data_url(png()))] * 3),
    "two images, no instruction": chat(*[image(data_url(png()))] * 2),
    "an address on the web": chat(image("https://example.org/a.png")),
    "an address that is a number": chat(image(7)),
    "no base64": chat(image("data:image/png;base64,a*b")),
    "base64 that is not ASCII": chat(image("data:image/png;base64,ü")),
    "no image in it": chat(image(data_url(b"hello"))),
    "an image that was cut off": chat(image(data_url(png(64, 64)[:60]))),
    "an image that is too large": chat(image(data_url(bomb()))),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_malformed_request_is_a_400_with_a_reason(verifier: Served, name: str) -> None:
    """A 500 would be tried again by the client, up to its deadline, for each rollout."""
    status, body = verifier.post(WRONG[name])
    assert status == 400
    assert body["error"]["message"]


def test_it_still_answers_after_all_that(verifier: Served) -> None:
    sample = next(edit_samples(Recolour, 1))
    with scorer(verifier) as judged:
        scored = judged.submit(sample.instruction, sample.image(sample.before), sample.image(sample.after))
        assert isinstance(scored.result(), Score)


def test_a_port_that_is_taken_is_one_clear_line(verifier: Served) -> None:
    port = int(verifier.url.split(":")[-1].split("/")[0])
    with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}"):
        asyncio.run(serve(VERIFIER, "127.0.0.1", port, None))
