"""Checks of the published checkpoints: the way to the Hub, what of them is on the disk, and whether it would load.

Nothing is fetched into the cache. What is there whole is judged by its files' headers, the rest by the Hub's
(`emu3.hub_headers`), so that a layout that does not fit is known before 17 GB are there.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, snapshot_download

from emu3.errors import UserError
from emu3.hub import HUB_ID, SAFE_FILES
from emu3.hub_headers import Fit, HubFiles, HubUnreachable, RemoteCheckpoint
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.tensor_files import INDEX_FILE, WEIGHTS_FILE, shards_of
from emu3.tokenizer.vision_checkpoint import CONFIG_FILE
from rl.check_node.check import ROOT, Facts, Node, Skipped

GB = 1e9
VISION, TOKENIZER, START = "BAAI/Emu3-VisionTokenizer", "BAAI/Emu3-Gen", "BAAI/Emu3-Stage1"


@dataclass(frozen=True)
class Released:
    """A published checkpoint. tokenizer: where its text tokenizer is; None: in itself, or it needs none. vision:
    whether it is an image tokenizer, weights: whether any of its weights are read."""

    name: str
    tokenizer: str | None = None
    vision: bool = False
    weights: bool = True


def released(models: Path = ROOT / "scripts" / "paper_models.txt") -> list[Released]:
    """What SFT starts from, the two tokenizers, and the models of the list of the paper's tables."""
    found = {
        START: Released(START, tokenizer=TOKENIZER),
        TOKENIZER: Released(TOKENIZER, weights=False),
        VISION: Released(VISION, vision=True),
    }
    for options in _options(models):
        if "--model" in options:
            found.setdefault(options["--model"], Released(options["--model"], options.get("--tokenizer")))
    return list(found.values())


def _options(models: Path) -> Iterator[dict[str, str]]:
    for line in models.read_text(encoding="utf-8").splitlines():
        words = shlex.split(line, comments=True)
        yield {words[at]: words[at + 1] for at in range(len(words) - 1) if words[at].startswith("--")}


def access(node: Node) -> tuple[str, Facts]:
    """One small file of the Hub."""
    if constants.is_offline_mode():
        raise Skipped("HF_HUB_OFFLINE is set: only what is in the cache is used")
    start = time.monotonic()
    mirror = bool(os.environ.get("HF_ENDPOINT"))
    try:
        content = HubFiles(VISION).content(CONFIG_FILE)
    except HubUnreachable as error:
        raise UserError(
            f"{error}; set HTTPS_PROXY, or HF_ENDPOINT to a mirror, or copy a cache here and set HF_HUB_OFFLINE=1"
        ) from None
    if content is None:
        raise UserError(f"the Hub answers, but has no {VISION}/{CONFIG_FILE}: is HF_ENDPOINT a whole mirror?")
    seconds = time.monotonic() - start
    return f"the {'mirror' if mirror else 'Hub'} answers in {seconds:.1f} s", {"mirror": mirror, "seconds": seconds}


def checkpoint(node: Node, model: Released) -> tuple[str, Facts]:
    """Whether a published checkpoint is in the cache, and fits the loader."""
    folder, there, files = cached(model.name, model.weights)
    facts: Facts = {"cached": folder is not None, "files_in_cache": there}
    if folder is None and constants.is_offline_mode():
        raise Skipped(f"not in the cache ({there} files are), and HF_HUB_OFFLINE is set")
    found = RemoteCheckpoint(folder or model.name)
    try:
        line = _looked_at(found, model, facts)
    except HubUnreachable:
        raise Skipped("not in the cache, and the Hub cannot be reached (see the check `hub`)") from None
    if folder is not None:
        return f"in the cache; {line}", facts
    assert found.files is not None
    facts["received_bytes"] = found.files.received
    part = f"{there} of {files} files in the cache" if there else "not in the cache"
    fetch = f", {facts['bytes'] / GB:.1f} GB to fetch" if facts.get("bytes") else ""
    return f"{part}{fetch}; by its headers ({found.files.received / 1e6:.1f} MB): {line}", facts


def _looked_at(found: RemoteCheckpoint, model: Released, facts: Facts) -> str:
    if not model.weights:
        tokenizer = found.text_tokenizer()
        facts["token_ids"] = tokenizer.layout.vocab_size
        return f"a text tokenizer of {tokenizer.layout.vocab_size} ids"
    if model.vision:
        fit = found.vision()
        _note(facts, fit)
        return f"fits, {fit.tensors} tensors"
    fit, vocabulary = found.language_model()
    _note(facts, fit)
    tokenizer = _tokenizer(found, model)
    facts["token_ids"] = vocabulary
    if tokenizer.layout.vocab_size != vocabulary:
        raise UserError(
            f"{model.name} has {vocabulary} token ids, the tokenizer of {model.tokenizer or model.name} "
            f"{tokenizer.layout.vocab_size}: name another by --tokenizer"
        )
    return f"fits, {fit.tensors} tensors, {fit.parameters / 1e9:.2f} billion parameters, {vocabulary} ids"


def _note(facts: Facts, fit: Fit) -> None:
    facts |= {"tensors": fit.tensors, "parameters": fit.parameters, "bytes": fit.bytes}


def _tokenizer(found: RemoteCheckpoint, model: Released) -> TextTokenizer:
    if model.tokenizer is None:
        return found.text_tokenizer()
    folder, *_ = cached(model.tokenizer, weights=False)
    return RemoteCheckpoint(folder or model.tokenizer).text_tokenizer()


def cached(name: str, weights: bool = True) -> tuple[Path | None, int, int]:
    """The folder of a repository in huggingface_hub's cache if it is there whole, how many of its weights' files are
    there, and how many there are (0: unknown). weights: whether they have to be."""
    match = HUB_ID.fullmatch(name)
    assert match is not None
    try:
        folder = Path(
            snapshot_download(
                match["repository"],
                revision=match["revision"],
                allow_patterns=list(SAFE_FILES),
                local_files_only=True,
            )
        )
    except Exception:  # nothing of it is there; huggingface_hub has several ways to say so
        return None, 0, 0
    if not weights:
        return (folder if any(folder.glob("*.txt")) or any(folder.glob("tokenizer.json")) else None), 0, 0
    there = sum(1 for file in folder.glob("*.safetensors") if file.is_file())
    if not (folder / CONFIG_FILE).is_file():
        return None, there, 0
    if (folder / WEIGHTS_FILE).is_file():
        return folder, there, 1
    if not (folder / INDEX_FILE).is_file():
        return None, there, 0
    shards = set(shards_of(json.loads((folder / INDEX_FILE).read_text(encoding="utf-8")), folder / INDEX_FILE).values())
    return (folder if there >= len(shards) else None), there, len(shards)
