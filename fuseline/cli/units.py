"""Ages, sizes and names, as they are typed and as they are shown."""

from __future__ import annotations

import argparse
import re

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_WIDTH = 100


def age(text: str) -> float:
    """Seconds, from a number and a unit such as ``12h``; for argparse."""
    return _scaled(text, _SECONDS, "an age such as 90s, 12h or 30d")


def size(text: str) -> int:
    """Bytes, from a number and a unit such as ``2G``; for argparse."""
    return int(_scaled(text.upper().removesuffix("B"), _UNITS, "a size such as 500M or 2G"))


def _scaled(text: str, units: dict[str, int], want: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]?)", text)
    if found is None or found[2] not in units:
        raise argparse.ArgumentTypeError(f"{text!r} is not {want}")
    return float(found[1]) * units[found[2]]


def bytes_text(number: int) -> str:
    """A size for people: 1.5 MB."""
    value = float(number)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def entries_text(number: int) -> str:
    """So many entries."""
    return "1 entry" if number == 1 else f"{number} entries"


def short(name: str) -> str:
    """A name, cut where it would fill the screen."""
    return name if len(name) <= _WIDTH else f"{name[: _WIDTH - 3]}..."
