"""Watching a run: its files, console lines, pictures, report and tracker, and what it will need before it starts."""
