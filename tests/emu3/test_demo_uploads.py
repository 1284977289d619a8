"""What a client may send to the demo besides what its page sends."""

from __future__ import annotations

import io
import json
import uuid
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from installed import skip_without
from PIL import Image

skip_without("gradio")

MARK = {"_type": "gradio.FileData"}


def ask(url: str, payload: Any) -> str:
    """The page's button, pressed by hand: the server's last message about it."""
    with urlopen(f"{url}/config", timeout=60) as reply:
        [button] = [each for each in json.load(reply)["dependencies"] if len(each["inputs"]) == 8]
    session = uuid.uuid4().hex
    data = {
        "data": [payload, "make it red", 1, 1.0, 0, False, False, None],
        "fn_index": button["id"],
        "session_hash": session,
    }
    post(f"{url}/gradio_api/queue/join", json.dumps(data).encode(), "application/json")
    with urlopen(f"{url}/gradio_api/queue/data?session_hash={session}", timeout=60) as events:
        for event in events:
            if b"process_completed" in event:
                return str(event.decode())
    raise AssertionError("the server said nothing")


def post(url: str, body: bytes, content_type: str) -> Any:
    with urlopen(Request(url, body, {"Content-Type": content_type}), timeout=60) as reply:
        return json.load(reply)


def upload(url: str, name: str, content: bytes) -> str:
    head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    [path] = post(f"{url}/gradio_api/upload", head + content + b"\r\n--b--\r\n", "multipart/form-data; boundary=b")
    return str(path)


def test_only_what_was_uploaded_is_opened(demo_url: str, tmp_path: Path) -> None:
    """Guards the server's disk: a client could name the path of any image there, marked as a file or not."""
    secret = tmp_path / "secret.png"
    Image.new("RGB", (40, 30), "red").save(secret)
    uploaded = upload(demo_url, "photo.png", secret.read_bytes())
    assert "Edits of 24x16 pixels" in ask(demo_url, {"path": uploaded, "meta": MARK})
    for payload in (
        {"path": str(secret), "meta": MARK},
        {"path": str(secret)},
        {"path": str(secret), "is_stream": True, "meta": MARK},
        {"path": f"{Path(uploaded).parent}/../../../..{secret}", "meta": MARK},
        {"path": f"{Path(uploaded).parent}/../../../..{secret}"},
        {"path": "photo.png", "url": secret.as_uri(), "meta": MARK},
    ):
        reply = ask(demo_url, payload)
        assert "Edits of" not in reply and "secret" not in reply, payload


def test_what_is_no_image_is_not_edited(demo_url: str) -> None:
    """Neither a text, nor a format for which Pillow starts another program, whatever its name says."""
    eps = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(eps, "EPS")
    for content in (b"no image", eps.getvalue()):
        path = upload(demo_url, "photo.png", content)
        assert "Edits of" not in ask(demo_url, {"path": path, "meta": MARK})
