"""The kinds of editors, as the command line and the files call them."""

from __future__ import annotations

EMU3, NO_EDIT, GROUND_TRUTH = "emu3", "no-edit", "ground-truth"
EDITORS = (EMU3, NO_EDIT, GROUND_TRUTH)
