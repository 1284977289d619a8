"""Reinforcement learning: GRPO with the score of a judge as reward."""
