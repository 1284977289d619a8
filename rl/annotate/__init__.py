"""Chains of thought for training data, written by a vision-language model that sees both pictures of a pair."""
