"""The registry of emitters: what writes an op of the IR as ONNX nodes.

    @emits(Tanh)
    def _tanh(w: Writer, op: Tanh) -> str: ...

An emitter gives the names of the op's results. `function` registers one whose nodes become the body
of a function of the domain ``fuseline``, and `expands` one whose body is made of other ops.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from fuseline.ir.core import Op, Value

if TYPE_CHECKING:
    from fuseline.exporting.onnx.writer import Writer
    from fuseline.frontend.builder import Builder

Names: TypeAlias = "str | Sequence[str]"
Emitter: TypeAlias = "Callable[[Writer, Any], Names]"
Expansion: TypeAlias = "Callable[[Builder, Any], Value | Sequence[Value]]"
EmitterT = TypeVar("EmitterT", bound=Callable[..., Any])

EMITTERS: dict[type[Op], Emitter] = {}
"""The emitter of each op."""

EXPANSIONS: dict[type[Op], Expansion] = {}
"""What makes an op of others, where it has that."""


class CannotWrite(Exception):
    """Something that has no form in ONNX; the message says what."""


def emits(*ops: type[Op]) -> Callable[[EmitterT], EmitterT]:
    """Register an emitter for ops."""

    def register(emitter: EmitterT) -> EmitterT:
        for op in ops:
            if EMITTERS.setdefault(op, emitter) is not emitter:
                raise ValueError(f"{op.name} has two emitters")
        return emitter

    return register


def function(*ops: type[Op]) -> Callable[[EmitterT], EmitterT]:
    """Register an emitter of the body of a function; the op is a call of it."""

    def register(body: EmitterT) -> EmitterT:
        emits(*ops)(functools.partial(_called, body))
        return body

    return register


def _called(body: Emitter, w: Writer, op: Op) -> Sequence[str]:
    return w.call(op, body)


def expands(op: type[Op], *, called: bool = True) -> Callable[[EmitterT], EmitterT]:
    """Register what makes an op of others.

    Args:
        op: the op.
        called: it is written as a function; else its own emitter says when.

    """

    def register(expansion: EmitterT) -> EmitterT:
        EXPANSIONS[op] = expansion
        if called:
            function(op)(expanded)
        return expansion

    return register


def expanded(w: Writer, op: Op) -> Sequence[str]:
    """The nodes of what an op is made of."""
    return w.expand(op, EXPANSIONS[type(op)])


__all__ = [
    "EMITTERS",
    "EXPANSIONS",
    "CannotWrite",
    "Emitter",
    "Expansion",
    "Names",
    "emits",
    "expanded",
    "expands",
    "function",
]
