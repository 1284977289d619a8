"""Tokenised data sets (write, read, mix) and supervised fine-tuning."""
