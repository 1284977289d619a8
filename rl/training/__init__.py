"""The policy in training: whole on every rank or sharded by DeepSpeed, with or without LoRA, and its reference."""
