"""Asking a judge about predictions, and how far one can be trusted."""
