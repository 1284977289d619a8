"""Tokenized datasets (write, read, mix) and supervised fine-tuning."""
