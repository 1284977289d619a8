"""The bookkeeping of distinct frames, against frames that are really repeated."""

from __future__ import annotations

import pytest

from emu3.tokenizer.fold import still_stages


def halve(clip: list[tuple], stage: int) -> list[tuple]:
    """One causal halving of symbolic frames: an output is the tuple of what its four taps see."""
    padded = [(), (), *clip]
    return [(stage, *padded[start : start + 4]) for start in range(0, len(padded) - 3, 2)]


@pytest.mark.parametrize("frames", [2, 4, 8, 16])
def test_distinct_frames_are_those_of_a_repeated_still(frames: int) -> None:
    """A frame too many wastes work; one too few is a wrong image."""
    clip: list[tuple] = [("still",)] * frames
    stages = still_stages(frames)
    for stage, distinct in enumerate(stages):
        inputs = list(dict.fromkeys(clip))
        clip = halve(clip, stage)
        assert len(distinct) == len(set(clip))
        for frame, expected in zip(distinct, dict.fromkeys(clip), strict=True):
            seen: list[tuple] = [()] * 4
            for source, taps in enumerate(frame):
                for tap in taps:
                    seen[tap] = inputs[source]
            assert (stage, *seen) == expected
    assert len(clip) == 1


def test_one_frame_has_no_stage() -> None:
    """A tokenizer without a temporal side gets no layer for it."""
    assert still_stages(1) == []
