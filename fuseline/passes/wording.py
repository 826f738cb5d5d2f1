"""How reasons speak of values: in the user's names, never in those of the IR's text."""

from __future__ import annotations

from collections.abc import Container

from fuseline.ir.core import Func, Op, Value
from fuseline.ir.ops.buffer import Read


def called(value: Value) -> str:
    """An argument by its name in the user's program, a result by the op that makes it."""
    match value.owner:
        case None:
            return name_of(value)
        case Read(buffer):
            return name_of(buffer)
        case op:
            return f"the result of {op.name}"


def maker(value: Value) -> str:
    """What makes a value: an argument by kind and name, or the op's name."""
    if value.owner is not None:
        return value.owner.name
    origin = value.origin
    kind = "argument" if origin is None or origin.kind == "input" else origin.kind
    return f"{kind} {name_of(value)}"


def name_of(argument: Value) -> str:
    """The name of an argument of the func in the user's program."""
    origin = argument.origin
    return origin.name if origin is not None and origin.name else argument.hint


def readers_beside(func: Func, value: Value, known: Container[Op]) -> str:
    """What reads a value beside the ops that are known to, by name; empty where nothing does."""
    others = [user.name for user in func.users(value) if user not in known]
    return ", ".join(others) or ("the return" if func.is_returned(value) else "")
