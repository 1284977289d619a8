"""What one picture, shown as all frames of a clip, leaves of the temporal downsampling: plain integer bookkeeping.

The published encoder repeats a still F times (F = temporal_downsample_factor) and halves time with causal convolutions
of 4 taps, stride 2, after two zero frames. Equal frames stay equal wherever the padding is not seen, so each stage
has only a few distinct output frames, and each of them is a sum of tap-weighted distinct input frames. `still_stages`
lists those sums: for F = 4, two distinct frames after the first stage and one after the second.
"""

from __future__ import annotations

PAD_FRAMES = 2
DOWN_TAPS = 4
DOWN_STRIDE = 2

Frame = tuple[tuple[int, ...], ...]
"""Of one distinct output frame: for each distinct input frame, the taps that see it."""


def still_stages(frames: int) -> list[list[Frame]]:
    """For each temporal halving of `frames` equal frames, its distinct output frames in order of appearance."""
    clip = [0] * frames
    stages: list[list[Frame]] = []
    while len(clip) > 1:
        distinct_inputs = max(clip) + 1
        padded: list[int | None] = [None] * PAD_FRAMES + clip
        outputs: list[Frame] = []
        for start in range(0, len(padded) - DOWN_TAPS + 1, DOWN_STRIDE):
            window = padded[start : start + DOWN_TAPS]
            outputs.append(
                tuple(tuple(tap for tap, seen in enumerate(window) if seen == i) for i in range(distinct_inputs))
            )
        distinct = list(dict.fromkeys(outputs))
        clip = [distinct.index(output) for output in outputs]
        stages.append(distinct)
    return stages
