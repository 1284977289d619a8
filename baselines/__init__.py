"""Evaluation in four steps with a file between them: evaluate, score, table, report."""
