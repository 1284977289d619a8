"""Speed, measured as ratios against the plain path or a peer: `python -m dev.speed` and `python -m dev.speed.rl`."""
