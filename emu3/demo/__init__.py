"""A page in the browser: an image and an instruction in, edits beside their source out."""
