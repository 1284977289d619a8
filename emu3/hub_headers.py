"""Whether a checkpoint on the Hub fits this project's loaders, by its headers alone, before it is fetched.

Asked for are config.json, the index, and of each safetensors file the 8 bytes that say how long its header is and the
header itself, by HTTP range requests: some 100 kB of 17 GB. They go through the code that loads
(`language_model.fitting_names`, `tokenizer.checkpoint.still_state`), with tensors that have shapes and no values; so a
layout that is refused here is the one that would be refused after the download.

A server that answers a range request with the whole file is refused before its body is read. Address, login and
proxies are huggingface_hub's (`HF_ENDPOINT`, `HF_TOKEN`), which sends the login to no other host.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_session, hf_hub_url
from huggingface_hub.utils import build_hf_headers

from emu3.errors import UserError, one_line
from emu3.files import read_json
from emu3.hub import HUB_ID
from emu3.mllm.language_model import config_of, fitting_names
from emu3.mllm.text_tokenizer import RANK_FILE, TOKENIZER_FILE, VISION_FILE, TextTokenizer
from emu3.tensor_files import INDEX_FILE, WEIGHTS_FILE, Header, TensorFiles, TensorHeaders, places_in, shards_of
from emu3.tokenizer.model import StillVQ
from emu3.tokenizer.vision_checkpoint import CONFIG_FILE, layout_in, still_state

SECONDS = 20.0
"""For one request to connect, and for each part of its response."""
LONGEST = 2**25
"""Bytes of the largest small file, and of the longest header, that is read."""
PREFIX = 8
"""Bytes at the head of a safetensors file: the length of its header, little-endian."""


class HubUnreachable(UserError):
    """No response at all, of whatever kind."""


@dataclass(frozen=True)
class Fit:
    """A checkpoint that loads. tensors: of the part that was looked at. parameters: their numbers. bytes: of the files
    that would be fetched for it; 0 where they are in a folder."""

    tensors: int
    parameters: int
    bytes: int


class HubFiles:
    """Small files and headers of the Hub repository `name` (`org/name` or `org/name@revision`).

    received: bytes of responses so far. sizes: of the safetensors files whose headers were read. seconds: of a request.
    Every method raises UserError, in one line, where the Hub cannot be reached or refuses.
    """

    def __init__(self, name: str, seconds: float = SECONDS) -> None:
        match = HUB_ID.fullmatch(name)
        if match is None:
            raise UserError(f"{name!r} is no Hub id (org/name or org/name@revision)")
        self.repository, self.revision = match["repository"], match["revision"]
        self.received = 0
        self.sizes: dict[str, int] = {}
        self._seconds = seconds

    def content(self, file: str) -> bytes | None:
        """A small file, None if the repository lacks it."""
        return self._get(file, {}, 200, lambda response: None)

    def json(self, file: str) -> Any:
        """A JSON file, None if the repository lacks it."""
        content = self.content(file)
        if content is None:
            return None
        try:
            return json.loads(content)
        except ValueError as error:
            raise UserError(f"{self.repository}/{file} is not JSON: {error}") from None

    def header(self, file: str) -> Header | None:
        """The header of a safetensors file, None if the repository lacks the file."""
        total = 0

        def note(response: Any) -> None:
            nonlocal total
            total = int(response.headers.get("Content-Range", "").rpartition("/")[2] or 0)

        first = self._range(file, 0, PREFIX, note)
        if first is None:
            return None
        length = int.from_bytes(first, "little")
        if length > LONGEST:
            raise UserError(f"{self.repository}/{file} is no safetensors file: its header would have {length} bytes")
        text = self._range(file, PREFIX, length)
        try:
            entries = {name: entry for name, entry in json.loads(text or b"").items() if name != "__metadata__"}
            header = {name: ([int(side) for side in entry["shape"]], entry["dtype"]) for name, entry in entries.items()}
            end = PREFIX + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            raise UserError(f"{self.repository}/{file} has a header that cannot be read") from None
        if end != total:
            raise UserError(f"{self.repository}/{file} has {total} bytes, its header speaks of {end}: it is not whole")
        self.sizes[file] = total
        return header

    def tensors(self, prefixes: tuple[str, ...] = ("",)) -> TensorHeaders:
        """As `TensorFiles.of`, without the numbers."""
        single = self.header(WEIGHTS_FILE)
        if single is not None:
            file = Path(self.repository, WEIGHTS_FILE)
            return TensorHeaders(places_in(dict.fromkeys(single, file), prefixes), {file: single}.__getitem__)
        index = self.json(INDEX_FILE)
        if index is None:
            raise UserError(f"{self.repository} has neither {WEIGHTS_FILE} nor {INDEX_FILE}")
        shards = shards_of(index, Path(self.repository, INDEX_FILE))
        files = {tensor: Path(self.repository, file) for tensor, file in shards.items()}
        return TensorHeaders(places_in(files, prefixes), self._shard)

    def _shard(self, file: Path) -> Header:
        header = self.header(file.name)
        if header is None:
            raise UserError(f"{file} does not exist, which {INDEX_FILE} names")
        return header

    def _range(
        self, file: str, start: int, length: int, note: Callable[[Any], None] = lambda response: None
    ) -> bytes | None:
        extra = {"Range": f"bytes={start}-{start + length - 1}"}
        content = self._get(file, extra, 206, note)
        if content is not None and len(content) != length:
            raise UserError(f"{self.repository}/{file}: asked for {length} bytes, got {len(content)}")
        return content

    def _get(self, file: str, extra: Mapping[str, str], status: int, note: Callable[[Any], None]) -> bytes | None:
        """The body of a response with `status`; no other one is read."""
        url = hf_hub_url(self.repository, file, revision=self.revision)
        headers = {**build_hf_headers(), "Accept-Encoding": "identity", **extra}
        try:
            with get_session().stream(
                "GET", url, headers=headers, timeout=self._seconds, follow_redirects=True
            ) as response:
                self._refuse(file, response.status_code, response.headers.get("X-Error-Code", ""), status)
                if response.status_code == 404:
                    return None
                note(response)
                body = b""
                for part in response.iter_raw():
                    body += part
                    self.received += len(part)
                    if len(body) > LONGEST:
                        raise UserError(
                            f"{self.repository}/{file} is larger than {LONGEST} bytes, which none should be"
                        )
                return body
        except UserError:
            raise
        except Exception as error:  # transport and proxy errors have no common class
            raise HubUnreachable(f"the Hub cannot be reached: {type(error).__name__}: {one_line(error)}") from None

    def _refuse(self, file: str, status: int, code: str, expected: int) -> None:
        if status in (401, 403):
            why = "is gated: ask for access on its page" if code == "GatedRepo" else "is private, gated or not there"
            raise UserError(f"{self.repository} {why}, then `hf auth login` or HF_TOKEN (HTTP {status})")
        if status == 404 and code in ("RepoNotFound", "RevisionNotFound"):
            raise UserError(f"{self.repository} has no revision {self.revision!r}, or is not there: check the spelling")
        if status == 200 and expected == 206:
            raise UserError(
                f"the server sends {self.repository}/{file} whole where a part was asked for (no range requests): "
                "unset HF_ENDPOINT, or fetch the checkpoint to check it"
            )
        if status not in (expected, 404):
            raise UserError(f"{self.repository}/{file}: HTTP {status}")


class RemoteCheckpoint:
    """A checkpoint by its config and its headers: in a folder, or on the Hub (`HubFiles`).

    Methods raise UserError as the loader of that part does, and where the Hub cannot be asked.
    """

    def __init__(self, name: str | Path) -> None:
        self.name = name
        self.files = None if Path(name).is_dir() else HubFiles(str(name))
        self._config = Path(name, CONFIG_FILE)

    def language_model(self) -> tuple[Fit, int]:
        """What `load_language_model` would load, and its number of token ids."""
        config = config_of(self._values(), self._config)
        tensors = self._tensors(("",))
        names = fitting_names(self.name, tensors, config)
        return self._fit(tensors, list(names.values())), config.language_model.vocab_size

    def vision(self) -> Fit:
        """What `StillVQ.from_pretrained` would load."""
        layout = layout_in(self._values(), self._config)
        tensors = self._tensors(layout.prefixes)
        state = still_state(self.name, layout, tensors, torch.float32, "both")
        with torch.device("meta"):
            model = StillVQ(layout.config)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"{self.name} does not hold the weights of its {CONFIG_FILE}: {one_line(error)}") from None
        return self._fit(tensors, list(tensors))

    def text_tokenizer(self) -> TextTokenizer:
        """The text tokenizer, some MB, which are kept for the moment only."""
        if self.files is None:
            return TextTokenizer.from_pretrained(self.name)
        with tempfile.TemporaryDirectory() as folder:
            for file in (TOKENIZER_FILE, RANK_FILE, VISION_FILE):
                content = self.files.content(file)
                if content is not None:
                    Path(folder, file).write_bytes(content)
            try:
                return TextTokenizer.from_pretrained(folder)
            except UserError as error:
                raise UserError(str(error).replace(folder, str(self.name))) from None

    def _values(self) -> Any:
        if self.files is None:
            return read_json(self._config)
        values = self.files.json(CONFIG_FILE)
        if values is None:
            raise UserError(f"{self.name} has no {CONFIG_FILE}")
        return values

    def _tensors(self, prefixes: tuple[str, ...]) -> TensorHeaders:
        if self.files is None:
            return TensorFiles.of(self.name, prefixes).without_numbers()
        return self.files.tensors(prefixes)

    def _fit(self, tensors: TensorHeaders, names: list[str]) -> Fit:
        parameters = sum(math.prod(tensors.shape_and_dtype(name)[0]) for name in names)
        return Fit(len(names), parameters, sum(self.files.sizes.values()) if self.files else 0)
