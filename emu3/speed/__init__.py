"""Speed, measured as ratios against the plain path or a peer's code; `python -m emu3.speed`."""
