"""Reading IR text that somebody wrote or saved: what is wrong with it is a diagnostic."""

from __future__ import annotations

from fuseline import errors
from fuseline.ir.core import Func, IRError, Op, OpError
from fuseline.ir.text import ParseError, parse_func, place
from fuseline.ir.verify import verify

_ROOM = 72
"""Characters of a line that are shown around the place where it is wrong."""


def read_func(text: str, name: str) -> Func:
    """The func of a text, verified.

    Args:
        text: such as a dump.
        name: of the file, for messages.

    Raises:
        errors.IRError: FL0301, for text that is no func, with its place; FL0302, for a func that
            breaks a rule of the IR, with the place of the op that does, if one alone does.

    """
    starts: dict[Op, int] = {}
    try:
        func = parse_func(text, starts)
    except ParseError as error:
        raise errors.NOT_IR.error(
            where=f"{name}:{error.line}:{error.column}",
            found=error.found,
            expected=error.expected,
            excerpt=excerpt(text, error.line, error.column),
        ) from error
    try:
        verify(func)
    except IRError as error:
        start = starts.get(error.op) if isinstance(error, OpError) else None
        at = None if start is None else place(text, start)
        raise errors.INVALID_IR.error(
            where=f"{name}:{at[0]}:{at[1]}" if at else name,
            found=str(error),
            excerpt=excerpt(text, *at) if at else None,
        ) from error
    return func


def excerpt(text: str, line: int, column: int) -> str:
    """A line of a text with its number, and a caret below a column; of a long line, a part.

    Each character takes one place, so that the caret stands where it should.
    """
    lines = text.split("\n")
    whole = lines[line - 1] if line <= len(lines) else ""
    shown = "".join(c if c.isprintable() else " " for c in whole)
    at = column - 1
    start = max(0, min(at - _ROOM // 2, len(shown) - _ROOM))
    stop = min(len(shown), start + _ROOM)
    before, after = "... " * (start > 0), " ..." * (stop < len(shown))
    margin = " " * len(str(line))
    return (
        f"  {line} | {before}{shown[start:stop]}{after}\n"
        f"  {margin} | {' ' * (len(before) + at - start)}^"
    )


__all__ = ["excerpt", "read_func"]
