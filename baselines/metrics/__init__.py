"""Scores of a prediction."""
