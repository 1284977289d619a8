"""A run's checkpoints as folders: which are its own, which are whole, and which go.

Names are the run's own if they are `stem` and a number and nothing else: what a person copied or renamed beside them
(`step_000002_best`) is neither read nor removed. A checkpoint may be a link, of one that was moved to another disk: it
is read like another; when its turn comes the link goes, and what it leads to stays.

`whole.json`-like notes name the files of a checkpoint with their sha256; it is written last. Reading all of it takes
minutes at full size, so that is done before a run goes on from one; for rotation it is enough that all files are there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import nn

from emu3.errors import UserError, one_line
from emu3.files import read_json, remove, sha256_of, write_json, write_speed
from emu3.run_folder import VERSION, check_version

FORMAT = 2
FILES = "files"
LARGE, SECONDS = 1e9, 5.0
"""Bytes and seconds below which writing a checkpoint is not worth a word."""


def numbered(place: Path, stem: str) -> list[tuple[int, Path]]:
    """The run's own checkpoints in `place`, by step, links included, even those that lead nowhere."""
    found = [(re.fullmatch(rf"{re.escape(stem)}(\d+)", path.name), path) for path in place.glob(f"{stem}*")]
    return sorted((int(match[1]), path) for match, path in found if match and (path.is_dir() or path.is_symlink()))


def write_note(folder: Path, name: str, digests: Mapping[str, str] | None = None) -> None:
    """Write the note of a checkpoint whose files are all there. digests: as `digests_of`, where they are known."""
    if digests is None:
        digests = digests_of(folder, (path for path in folder.rglob("*") if path.is_file()))
    write_json(folder / name, {VERSION: FORMAT, FILES: dict(sorted(digests.items()))})


def digests_of(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """sha256 of each of the files, by its path in `folder`."""
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


def fault_of(folder: Path, name: str, *, thorough: bool = True) -> str | None:
    """What is wrong with a checkpoint, None if it is as its note says. thorough: read every byte.

    Notes of format 1 are the digests alone, or sizes in their place.
    """
    if not folder.is_dir():
        return f"it leads to {folder.readlink()}, which is not there" if folder.is_symlink() else "it is no folder"
    try:
        note = read_json(folder / name)
        check_version(folder / name, note, FORMAT)
    except UserError as error:
        return str(error)
    files = note.get(FILES, note)
    if not isinstance(files, dict) or not files:
        return f"{name} names no files"
    for file, expected in files.items():
        if not (folder / file).is_file():
            return f"{file} is missing"
        if isinstance(expected, int):
            if (folder / file).stat().st_size != expected:
                return f"{file} has another size than was written"
        elif thorough and sha256_of(folder / file) != expected:
            return f"{file} is not what was written"
    return None


def rotate(place: Path, stem: str, name: str, *, keep: int, written: Path, also: Sequence[Path] = ()) -> None:
    """Remove all but `keep` whole checkpoints up to `written`, which has just been written and stays, as do those of
    `also`; the others that are kept are the newest. What cannot be removed is said on standard output and costs nothing
    else."""
    found = numbered(place, stem)
    own = next(step for step, path in found if path == written)
    whole = [path for step, path in found if step <= own and fault_of(path, name, thorough=False) is None]
    kept = {written, *(path for path in also if path in whole)}
    for path in reversed(whole):
        if len(kept) < keep:
            kept.add(path)
    for path in whole:
        if path in kept:
            continue
        try:
            if path.is_symlink():
                print(f"{path} is a link, which is removed; {path.readlink()} stays", flush=True)
            remove(path)
        except OSError as error:
            print(f"warning: {path} was not removed: {one_line(error)}", flush=True)


def checkpoint_bytes(model: nn.Module, *, sharded: bool) -> float:
    """Of a checkpoint of `model`: its weights, and AdamW's moments of what is trained; under DeepSpeed (`sharded`)
    float32 weights beside them."""
    sizes = [(getattr(p, "ds_numel", p.numel()), p.element_size(), p.requires_grad) for p in model.parameters()]
    return float(sum(size * (element + (12 if sharded else 8) * trained) for size, element, trained in sizes))


def save_time(run: Path, size: float) -> str | None:
    """A line about the time that writing a checkpoint of `size` bytes takes in `run`, measured there by a part of it;
    None where it is seconds, or where nothing can be written."""
    if size < LARGE:
        return None
    try:
        speed = write_speed(run, min(int(size), 2**29), 3.0)
    except OSError:
        return None
    if size / speed < SECONDS:
        return None
    return (
        f"a checkpoint has {size / 1e9:.0f} GB and takes {size / speed:.0f} s here ({speed / 1e9:.2f} GB/s): announce "
        "a job's end so much earlier, as Slurm does by --signal=B:USR1@SECONDS"
    )
