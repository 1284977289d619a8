"""What supervised fine-tuning and reinforcement learning share: the head, LoRA, sharded weights, state on disk."""
