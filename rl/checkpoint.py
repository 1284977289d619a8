"""Checkpoints of a run: whole or absent, verified before use.

`checkpoints/step_000100` is the state after 100 steps: `model/` (a folder that `Emu3ForCausalLM.from_pretrained`
loads), the optimizer, `state.json`, and `manifest.json` with the sha256 of each file. With LoRA, `adapter.safetensors`
stands in for `model/`: the model under the adapters does not change. With `rollout.ahead`, `ahead.safetensors` has what
was sampled for the next step, from weights that are gone. No random state is stored: every random number of a run is a
function of (seed, step, prompt, sample), and the order of the prompts one of (seed, position).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from emu3.checkpoint_facts import CheckpointFacts
from emu3.errors import one_line
from emu3.files import read_json, sync, whole_folder, write_json
from emu3.mllm.language_model import save_checkpoint
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.report.metrics_file import refuse_another_command
from emu3.run_folder import VERSION, check_version
from emu3.training import ranks
from emu3.training.checkpoints import digests_of, fault_of, numbered, rotate, write_note
from emu3.training.state import ADAPTER, WRITE_ERRORS, collected
from rl.config import Config
from rl.config_file import refuse_another_run
from rl.rollout.engine import Rollout
from rl.training.policy import Trainer

MANIFEST = "manifest.json"
STATE = "state.json"
AHEAD = "ahead.safetensors"
FINISHED = "finished.json"
FORMAT = 2
"""Of a checkpoint and of the note that a run is finished; 1 had no version."""
STEM = "step_"


@dataclass(frozen=True)
class RunCheckpoint:
    """A whole checkpoint. step: steps done. prompt_position: the next prompt of the run's order."""

    folder: Path
    step: int
    prompt_position: int

    def ahead(self) -> dict[int, list[Rollout]]:
        """The rollouts that were sampled for the next step already, by their prompt's place in it."""
        return read_rollouts(self.folder / AHEAD) if (self.folder / AHEAD).is_file() else {}


class Checkpoints:
    """The checkpoints that a run writes: each is copied to main memory, for which training waits, and goes from there
    to the disk by a thread of every rank, for which it does not.

    saved: steps of the newest one that is whole on the disk. All ranks call each method at the same place. An error of
    the disk costs a checkpoint, is said, and leaves nothing behind.
    """

    def __init__(
        self,
        run: Path,
        trainer: Trainer,
        tokenizer: TextTokenizer,
        config: Config,
        facts: CheckpointFacts | None = None,
        saved: int = 0,
    ) -> None:
        """facts: what the model says about itself, but for its steps."""
        self.saved = saved
        self._run = run
        self._trainer = trainer
        self._tokenizer = tokenizer
        self._config = config
        self._facts = facts
        self._under_way: _Writing | None = None

    def begin(self, step: int, prompt_position: int, ahead: Mapping[int, Sequence[Rollout]] | None = None) -> None:
        """Copy the state after `step` steps and begin to write it, once the one before is written.

        ahead: this rank's rollouts that were sampled for that step already, by the prompt's place in it.
        """
        self.finish()
        folder, stack = _folder(self._run, step), ExitStack()
        try:
            temporary = Path(ranks.on_first(lambda: str(stack.enter_context(whole_folder(folder)))))
        except ranks.SHARED_ERRORS as error:
            self._lost(step, one_line(error))
            return
        rollouts = {place: group for part in ranks.gather(dict(ahead or {})) for place, group in part.items()}
        write = self._take(temporary, step, prompt_position, rollouts)
        self._under_way = _Writing(step, folder, temporary, stack, write)
        if not self._config.compute.save_in_background:
            self.finish()

    def poll(self) -> None:
        """Make the checkpoint that is being written a whole one, if every rank has written its share."""
        if self._under_way is not None and all(ranks.gather(self._under_way.is_done())):
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if there is one."""
        if (writing := self._under_way) is None:
            return
        self._under_way = None
        digests, fault = writing.outcome()
        parts = ranks.gather((digests, fault))
        faults = [fault for _, fault in parts if fault is not None]

        def make_whole() -> None:
            with writing.stack:
                if faults:
                    raise OSError(faults[0])
                write_note(
                    writing.temporary, MANIFEST, {path: sha256 for part, _ in parts for path, sha256 in part.items()}
                )
            keep = self._config.keep_checkpoints
            rotate(writing.folder.parent, STEM, MANIFEST, keep=keep, written=writing.folder)

        try:
            ranks.on_first(make_whole)
        except ranks.SHARED_ERRORS as error:
            self._lost(writing.step, one_line(error))
        else:
            self.saved = writing.step

    def _take(
        self, folder: Path, step: int, prompt_position: int, rollouts: Mapping[int, Sequence[Rollout]]
    ) -> Callable[[], list[Path]]:
        """What writes this rank's share into `folder` and gives its files, from what is taken now."""
        first = ranks.is_first()
        lora = self._config.lora is not None
        named = self._trainer.named_adapters() if lora else self._trainer.named_weights()
        weights = collected(named, first, copy=self._config.compute.save_in_background)
        size = ranks.on_first(lambda: sum(tensor.nbytes for tensor in weights.values()))
        write_optimizer = self._trainer.optimizer_writer(folder, size)
        facts = None if self._facts is None else replace(self._facts, steps=step)

        def write() -> list[Path]:
            written = write_optimizer()
            if not first:
                return written
            if lora:
                save_file(weights, folder / ADAPTER)
            else:
                save_checkpoint(self._trainer.model, self._tokenizer, folder / "model", state=weights, facts=facts)
            if rollouts:
                write_rollouts(folder / AHEAD, rollouts)
            write_json(folder / STATE, {VERSION: FORMAT, "step": step, "prompt_position": prompt_position})
            own = [folder / name for name in (ADAPTER, AHEAD, STATE) if (folder / name).is_file()]
            return [*written, *own, *(path for path in (folder / "model").rglob("*") if path.is_file())]

        return write

    def _lost(self, step: int, fault: str) -> None:
        if ranks.is_first():
            print(f"no checkpoint of step {step}: {fault}; the run goes on without", flush=True)


class _Writing:
    """A checkpoint on its way to the disk. stack: has the folder's place, on rank 0; left, the folder is whole."""

    def __init__(
        self, step: int, folder: Path, temporary: Path, stack: ExitStack, write: Callable[[], list[Path]]
    ) -> None:
        self.step, self.folder, self.temporary, self.stack = step, folder, temporary, stack
        self._digests: dict[str, str] = {}
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint", daemon=True)
        self._thread.start()

    def _run(self, write: Callable[[], list[Path]]) -> None:
        try:
            files = write()
            for path in files:
                sync(path)
            self._digests = digests_of(self.temporary, files)
        except Exception as error:
            self._error = error

    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def outcome(self) -> tuple[dict[str, str], str | None]:
        """Wait for the thread: the digests of its files, or what the disk has against them. Raises what is a bug."""
        self._thread.join()
        if self._error is not None and not isinstance(self._error, WRITE_ERRORS):
            raise self._error
        return self._digests, None if self._error is None else one_line(self._error)


def write_rollouts(path: Path, rollouts: Mapping[int, Sequence[Rollout]]) -> None:
    """Write groups of rollouts, by their prompt's place in the step, as one safetensors file."""
    arrays: dict[str, np.ndarray] = {}
    reasoning: dict[str, str] = {}
    for place, group in rollouts.items():
        for member, rollout in enumerate(group):
            name = f"{place}/{member}"
            arrays[f"{name}/tokens"] = np.array(rollout.tokens, np.int64)
            arrays[f"{name}/logprobs"] = rollout.logprobs
            arrays[f"{name}/codes"] = rollout.codes
            if rollout.reasoning is not None:
                reasoning[name] = rollout.reasoning
    save_arrays(arrays, path, metadata={"reasoning": json.dumps(reasoning)})


def read_rollouts(path: Path) -> dict[int, list[Rollout]]:
    """What `write_rollouts` wrote."""
    with safe_open(path, framework="np") as file:
        reasoning = json.loads(file.metadata()["reasoning"])
        names = sorted({tuple(map(int, key.split("/")[:2])) for key in file.keys()})  # noqa: SIM118  # not a mapping
        rollouts: dict[int, list[Rollout]] = {}
        for place, member in names:
            name = f"{place}/{member}"
            tokens, logprobs, codes = (file.get_tensor(f"{name}/{kind}") for kind in ("tokens", "logprobs", "codes"))
            rollouts.setdefault(place, []).append(Rollout(tokens.tolist(), logprobs, codes, reasoning.get(name)))
    return rollouts


def save_model(
    folder: Path | None, trainer: Trainer, tokenizer: TextTokenizer, facts: CheckpointFacts | None = None
) -> None:
    """Write the policy, LoRA merged, as `emu3.mllm.language_model.save_checkpoint` does. All ranks take part and have
    the same errors, one of `WRITE_ERRORS`; rank 0 writes, the others have None."""
    state = collected(trainer.named_weights(), folder is not None)

    def write() -> None:
        assert folder is not None
        save_checkpoint(trainer.model, tokenizer, folder, state=state, facts=facts)

    ranks.on_first(write)


def newest(run: Path) -> RunCheckpoint | None:
    """The newest whole checkpoint of a run, None if it has none. Broken ones are named and passed over."""
    for _, folder in reversed(numbered(run / "checkpoints", STEM)):
        fault = fault_of(folder, MANIFEST)
        if fault is None:
            state = read_json(folder / STATE)
            check_version(folder / STATE, state, FORMAT)
            return RunCheckpoint(folder, state["step"], state["prompt_position"])
        print(f"checkpoint {folder} is broken ({fault}); trying the one before", flush=True)
    return None


def folder_of(config: Config) -> Path:
    """The run's folder."""
    return Path(config.output_dir) / config.run_name


def note_finished(run: Path, steps: int) -> None:
    """Note that `final` is the model after `steps` steps."""
    write_json(run / FINISHED, {VERSION: FORMAT, "steps": steps})


def is_finished(config: Config) -> bool:
    """Whether the run has done all its steps and left its model. Raises UserError if the folder holds another run."""
    run = folder_of(config)
    refuse_another_command(run, "config.json")
    if not (run / FINISHED).is_file() or not (run / "final").is_dir():
        return False
    note = read_json(run / FINISHED)
    check_version(run / FINISHED, note, FORMAT)
    refuse_another_run(config, run / "config.json")
    return int(note["steps"]) >= config.steps


def _folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"{STEM}{step:06d}"
