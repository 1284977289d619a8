"""Speed, measured as ratios against the plain path or a peer's code: `python -m dev.speed`, `python -m dev.speed.rl`."""
