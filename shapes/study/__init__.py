"""The study: the paper's tables and claims in the embedded world, over seeds, with a map of when RL wins."""
