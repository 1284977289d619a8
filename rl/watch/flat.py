"""Trees of figures and settings as flat ones, for what shows them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def flat(tree: Mapping[str, Any], separator: str, prefix: str = "") -> dict[str, Any]:
    """Values by their path, such as `parts/sc`; what is None is left out."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, separator, f"{prefix}{name}{separator}")
        elif value is not None:
            found[prefix + name] = value
    return found


def without_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings with the user and password of every address taken out."""
    return {
        name: re.sub(r"//[^/\s]*@", "//", value) if isinstance(value, str) else value
        for name, value in settings.items()
    }
