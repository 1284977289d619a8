"""Chains of thought for training data, written by a vision-language model that sees both images of a pair."""
