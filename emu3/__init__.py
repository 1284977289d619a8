"""Emu3 as an image editor: pictures and instructions in, pictures out."""
