"""Files that are written at once: whoever reads one finds the old text or the new one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Put a text into a file.

    Raises:
        OSError: it cannot be written; what was there is there still.

    """
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written beside, and rename it.

    Raises:
        OSError: it cannot be written; what was there is there still.

    """
    target = Path(os.path.realpath(path))  # a link stays one
    if target.exists() and not target.is_file():  # a pipe or a device is written to as it is
        write(target)
        return
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        write(temporary)
        temporary.replace(target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def refusal_of(path: Path) -> str:
    """Why a file cannot be made, or replaced; empty where it can."""
    if path.is_dir():
        return "it is a directory"
    folder = path.parent
    if not folder.is_dir():
        return f"no directory {folder}"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"the directory {folder} cannot be written to"
    return ""


__all__ = ["refusal_of", "replace_file", "replace_text"]
