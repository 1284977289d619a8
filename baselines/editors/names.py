"""The kinds of editors, as the command line and the files call them."""

from __future__ import annotations

EMU3, NO_EDIT, GROUND_TRUTH = "emu3", "no-edit", "ground-truth"
INSTRUCT_PIX2PIX, MAGICBRUSH, AURORA, OMNIGEN = "instruct-pix2pix", "magicbrush", "aurora", "omnigen"
COMMAND, FOLDER = "command", "folder"
EDITORS = (EMU3, INSTRUCT_PIX2PIX, MAGICBRUSH, AURORA, OMNIGEN, COMMAND, FOLDER, NO_EDIT, GROUND_TRUTH)
