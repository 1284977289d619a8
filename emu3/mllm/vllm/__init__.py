"""Sampling by vLLM 0.32.0: the same requests, samples and distributions as `emu3.mllm.generate`, many at once."""
