"""Rewards: judge client, VIEScore, answer cache."""
