"""The questions that are put to a judge about an edited picture.

All give the instruction on a line of its own, `Editing instruction: <instruction>`, on which a judge that is a program
rather than a model can rely; so it can on the line `Grade: <name>` of the questions for a single grade, which stand in
`prompts/` beside our wording of VIEScore's two. The wording that the published numbers were made with is its
authors' and is read from a checkout of their repository (TIGER-AI-Lab/VIEScore), not copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emu3.errors import UserError

MARK = "<instruction>"


@dataclass(frozen=True)
class EditPrompts:
    """edit: question about the source and the edited picture (SC), holding `<instruction>`.
    quality: question about the edited picture alone (PQ)."""

    edit: str
    quality: str

    def edit_question(self, instruction: str) -> str:
        """The SC question, `with_instruction`."""
        return with_instruction(self.edit, instruction)


def with_instruction(question: str, instruction: str) -> str:
    """The question about an edit. Runs of white space in the instruction, newlines too, become one space."""
    return question.replace(MARK, " ".join(instruction.split()))


def prompts_from(checkout: Path | str | None) -> EditPrompts:
    """The authors' wording from a checkout of their repository; ours without one."""
    return load_prompts() if checkout is None else load_published_prompts(Path(checkout))


def load_prompts() -> EditPrompts:
    """Our wording of VIEScore's."""
    return EditPrompts(edit=load_question("edit"), quality=load_question("quality"))


def load_question(name: str) -> str:
    """A question of ours: `prompts/NAME.txt`."""
    return _read(Path(__file__).parent / "prompts" / f"{name}.txt")


def load_published_prompts(folder: Path) -> EditPrompts:
    """The authors' zero-shot wording for text-guided editing, parts joined by newlines as they do.

    folder: their checkout, or its folder `viescore/prompts_raw`. Raises `UserError` if a file is missing.
    """
    inner = Path(folder) / "viescore" / "prompts_raw"
    raw = inner if inner.is_dir() else Path(folder)
    context = _read(raw / "context_no_delimit.txt")
    shots = raw / "prompts_0shot"
    edit = "\n".join([context, _read(shots / "two_image_edit_rule.txt"), _read(shots / "tie_rule_SC.txt")])
    if MARK not in edit:
        raise UserError(f"{shots / 'tie_rule_SC.txt'} has no place for the instruction ({MARK})")
    return EditPrompts(edit=edit, quality="\n".join([context, _read(shots / "rule_PQ.txt")]))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"judge prompt {path} cannot be read: {error.strerror}") from None
