"""The embedded world: scenes, edits, a strict verifier and its judge server, on which every stage runs on a laptop."""
