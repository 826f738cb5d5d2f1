"""The package's logger, and the one function that sets its level.

Library code sets no handlers: until `set_log_level` is called, or ``FUSELINE_LOG`` is set, what
is logged goes wherever the application sends it.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from fuseline.config import parse_level

if TYPE_CHECKING:
    from fuseline.config import Config

_LOGGER = logging.getLogger("fuseline")
_LOGGER.addHandler(logging.NullHandler())


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever sys.stderr is at that moment, as programs (and tests) replace it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(levelname).1s %(name)s: %(message)s"))

    @property
    def stream(self) -> TextIO:  # pyright: ignore[reportIncompatibleVariableOverride]
        return sys.stderr


@dataclass
class _State:
    """Whether the program has set the level itself."""

    explicit: bool = False


_HANDLER = _StderrHandler()
_STATE = _State()


def set_log_level(level: str | int) -> None:
    """Show fuseline's log records of a level and above on standard error.

    Args:
        level: a name of the logging module (``"DEBUG"``, ``"info"``, ...), or its number.

    Raises:
        UsageError: FL0101, for a level that does not exist.
    """
    _set(parse_level(level, where="set_log_level()"))
    _STATE.explicit = True


def apply_config(config: Config) -> None:
    """Set the level that a configuration names, unless the program has called `set_log_level`."""
    if config.log is not None and not _STATE.explicit:
        _set(config.log)


def _set(level: str) -> None:
    if _HANDLER not in _LOGGER.handlers:
        _LOGGER.addHandler(_HANDLER)
    _LOGGER.setLevel(level)
    _HANDLER.setLevel(level)
