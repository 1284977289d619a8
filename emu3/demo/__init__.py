"""A page in the browser: a picture and an instruction in, edits beside their source out."""
