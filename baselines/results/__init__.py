"""The files between the steps, and what else a run leaves: who wrote them, from what, at which cost."""
