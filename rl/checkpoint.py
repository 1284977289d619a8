"""Checkpoints of a run: whole or absent, verified before use.

`checkpoints/step_000100` is the state after 100 steps: `model/` (a folder that `Emu3ForCausalLM.from_pretrained`
loads), the optimizer (`emu3.optimizer_state`), `state.json`, and `manifest.json` with the sha256 of each file. No
random state is stored: every random number of a run is a function of (seed, step, prompt, sample),
and the order of the prompts one of (seed, position).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Emu3ForCausalLM

from emu3.errors import UserError
from emu3.files import read_json, sha256_of, whole_folder, write_json
from emu3.mllm.language_model import save_checkpoint
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.optimizer_state import save_optimizer

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint. step: steps done. prompt_position: the next prompt of the run's order."""

    folder: Path
    step: int
    prompt_position: int

    @property
    def model(self) -> Path:
        return self.folder / "model"


def save(
    run: Path,
    step: int,
    prompt_position: int,
    model: Emu3ForCausalLM,
    tokenizer: TextTokenizer,
    optimizer: torch.optim.Optimizer,
    keep: int,
) -> None:
    """Write the checkpoint of `step` into the run's folder and remove all but the newest `keep`."""
    with whole_folder(_folder(run, step)) as temporary:
        save_checkpoint(model, tokenizer, temporary / "model")
        save_optimizer(temporary, model, optimizer)
        write_json(temporary / "state.json", {"step": step, "prompt_position": prompt_position})
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        write_json(temporary / MANIFEST, {path.relative_to(temporary).as_posix(): sha256_of(path) for path in files})
    for folder in _folders(run)[:-keep]:
        shutil.rmtree(folder)


def newest(run: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run, None if it has none. Broken ones are named and passed over."""
    for folder in reversed(_folders(run)):
        fault = _fault(folder)
        if fault is None:
            return Checkpoint(folder, **read_json(folder / "state.json"))
        print(f"checkpoint {folder} is broken ({fault}); trying the one before", flush=True)
    return None


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, None if every file is as its manifest says."""
    try:
        manifest = read_json(folder / MANIFEST)
    except UserError as error:
        return str(error)
    for name, digest in manifest.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256_of(folder / name) != digest:
            return f"{name} is not what was written"
    return None


def _folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:06d}"


def _folders(run: Path) -> list[Path]:
    """Oldest first; temporary folders of interrupted writes begin with a dot and do not count."""
    return sorted((run / "checkpoints").glob("step_*"))
