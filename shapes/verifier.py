"""A strict judge of edits in the embedded world, from pixels and the words of the instruction alone.

It gives the four parts of VIEScore, each a whole number from 0 to 10:
- edit success: the share of what was asked for that is there; an unchanged image has 0. For a restoration, the share of
  the noise, the blur or the darkness that is gone, by the pixels beside the scene that explains them;
- overedit: 10 for nothing else touched, less `SLOT_COST` for every other slot that changed, `BACKGROUND_COST` for a
  background that changed unasked;
- naturalness: how well the worst shape fits a true form;
- no artifacts: how few pixels the image has that no scene explains.
And beside an edit that is taken as right:
- agreement: 10 for the same scene, less `DIFFERENCE_COST` for every slot, and for a background, that is another, and
  for a flaw that was to be removed and is there at half its strength or more.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from shapes.edits import SceneEdit, parse
from shapes.edits.other import Restore
from shapes.reader import has_flaw, read

SLOT_COST = 4.0
BACKGROUND_COST = 6.0
DIFFERENCE_COST = 5.0
WORST_OVERLAP, GOOD_OVERLAP = 0.5, 0.9  # naturalness 0 and 10
MOST_WRONG, FEW_WRONG = 0.08, 0.005  # no artifacts 0 and 10


@dataclass(frozen=True)
class Verdict:
    """One or two scores, whole numbers from 0 to 10, and one sentence that gives the reason."""

    scores: tuple[int, ...]
    reason: str


def judge_edit(instruction: str, source: Image.Image, edited: Image.Image) -> Verdict:
    """Edit success and overedit. Raises ValueError for an instruction that is not of this world or does not fit."""
    edit = parse(instruction)
    if edit is None:
        raise ValueError(f"no edit of this world: {instruction!r}")
    before, after = (read(image, _flaw(edit)).scene for image in (source, edited))
    try:
        success = edit.success(before, after)
        touched = edit.touched(before, after)
    except LookupError as error:
        raise ValueError(str(error)) from None
    other = [
        slot
        for slot, (old, new) in enumerate(zip(before.slots, after.slots, strict=True))
        if slot not in touched and old != new
    ]
    tone_kept = after.background == edit.background_after(before) or after.background == before.background
    lost = SLOT_COST * len(other) + (0 if tone_kept else BACKGROUND_COST)
    reason = f"{edit.kind}: {success:.2f} of the edit is done, {len(other)} other places changed" + (
        "" if tone_kept else ", the background changed"
    )
    return Verdict((round(10 * success), round(max(0.0, 10 - lost))), reason)


def judge_quality(edited: Image.Image) -> Verdict:
    """Naturalness and absence of artifacts."""
    reading = read(edited)
    worst = min(reading.overlap.values(), default=1.0)
    natural = _scaled(worst, WORST_OVERLAP, GOOD_OVERLAP)
    clean = _scaled(reading.wrong, MOST_WRONG, FEW_WRONG)
    reason = f"the worst form fits to {worst:.2f}, {reading.wrong:.1%} of the pixels are stray"
    return Verdict((natural, clean), reason)


def judge_agreement(target: Image.Image, edited: Image.Image, instruction: str = "") -> Verdict:
    """Agreement with `target`. instruction: what `target` was to be."""
    expected, found = read(target).scene, read(edited).scene
    others = sum(one != other for one, other in zip(expected.slots, found.slots, strict=True))
    others += expected.background != found.background
    flaw = _flaw(parse(instruction))
    others += bool(flaw) and has_flaw(edited, flaw)
    score = round(max(0.0, 10 - DIFFERENCE_COST * others))
    return Verdict((score,), f"{others} places are not as in the example")


def _flaw(edit: SceneEdit | None) -> str:
    """The flaw that an edit removes, or nothing."""
    return edit.flaw if isinstance(edit, Restore) else ""


def _scaled(value: float, worst: float, best: float) -> int:
    """10 at `best`, 0 at `worst`, linear between, as a whole number."""
    return round(10 * min(1.0, max(0.0, (value - worst) / (best - worst))))
