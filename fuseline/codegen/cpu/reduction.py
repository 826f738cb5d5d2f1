"""Reductions along a row in C++: what each element adds, and the loop around it.

Sums of floating numbers are accumulated in float32 over parts of a row, and the parts in float64; a
NaN anywhere is the largest and the smallest element.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fuseline.codegen.cpu.pointwise import Loop
from fuseline.codegen.cpu.scalar import COMPUTE, ScalarError, Term
from fuseline.ir.ops.reduce import All, Amax, Amin, Any, Mean, Sum
from fuseline.ir.region import Node
from fuseline.ir.types import DType


@dataclass(frozen=True)
class Parts:
    """The pieces of a reduction: a step for each element, the result, and the loop around."""

    step: str
    result: str
    loop: Loop


def reduction(node: Node, x: Term, i: int) -> Parts:
    """The pieces of a reduction of ``x``; ``i`` makes its names unique."""
    op, result = node.op, node.value.dtype
    match op:
        case Sum() | Mean() if result.is_float:
            wide = "double" if result is DType.F64 else "float"
            total = f"(total{i} / n)" if isinstance(op, Mean) else f"total{i}"
            loop = Loop(
                carried=(f"double total{i} = 0;",),
                partial=(f"{wide} part{i} = 0;",),
                reduction=f"reduction(+ : part{i})",
                join=(f"total{i} += part{i};",),
            )
            return Parts(f"part{i} += {x.text};", f"({COMPUTE[result]}){total}", loop)
        case Sum():
            return _folded(f"uint64_t total{i} = 0;", f"total{i} += (uint64_t){x.text};", "+", i)
        case Any():
            return _folded(f"int32_t total{i} = 0;", f"total{i} |= {x.text} != 0;", "|", i, "!= 0")
        case All():
            return _folded(f"int32_t total{i} = 0;", f"total{i} |= {x.text} == 0;", "|", i, "== 0")
        case Amax() | Amin():
            return _extreme(op, x, result, i)
        case _:
            raise ScalarError(f"no reduction {op.name if op else ''} of {result}")


def _folded(declare: str, step: str, sign: str, i: int, test: str = "") -> Parts:
    result = f"total{i} {test}" if test else f"(int64_t)total{i}"
    return Parts(step, result, Loop(carried=(declare,), reduction=f"reduction({sign} : total{i})"))


_LIMITS = {
    DType.I64: ("INT64_MIN", "INT64_MAX"),
    DType.I32: ("INT32_MIN", "INT32_MAX"),
    DType.I16: ("INT16_MIN", "INT16_MAX"),
    DType.I8: ("INT8_MIN", "INT8_MAX"),
    DType.U8: ("0", "UINT8_MAX"),
    DType.BOOL: ("false", "true"),
}


def _extreme(op: Amax | Amin, x: Term, result: DType, i: int) -> Parts:
    """Largest or smallest; a NaN anywhere is the result."""
    kind, name = COMPUTE[result], "max" if isinstance(op, Amax) else "min"
    sign = ">" if name == "max" else "<"
    low, high = _LIMITS.get(result, ("-__builtin_inff()", "__builtin_inff()"))
    first = low if name == "max" else high
    if result is DType.BOOL:
        kind = "uint8_t"
    step = f"most{i} = {x.text} {sign} most{i} ? {x.text} : most{i};"
    carried, clause = f"{kind} most{i} = {first};", f"reduction({name} : most{i})"
    if not result.is_float:
        return Parts(step, f"({kind})most{i}", Loop(carried=(carried,), reduction=clause))
    return Parts(
        f"{step} nan{i} |= {x.text} != {x.text};",
        f'nan{i} ? ({kind})__builtin_nanf("") : most{i}',
        Loop(
            carried=(carried, f"int32_t nan{i} = 0;"),
            reduction=f"{clause} reduction(| : nan{i})",
        ),
    )


def unrolled(node: Node, xs: Sequence[str]) -> str:
    """The reduction of a few elements that are all at hand, as one expression."""
    op, result = node.op, node.value.dtype
    kind = COMPUTE[result]
    match op:
        case Sum() | Mean():
            wide = "uint64_t" if not result.is_float else kind
            total = " + ".join(f"({wide}){x}" if wide != kind else x for x in xs)
            return f"({kind})({total})" if isinstance(op, Sum) else f"(({total}) / {len(xs)})"
        case Any() | All():
            sign = " | " if isinstance(op, Any) else " & "
            return f"({sign.join(f'({x} != 0)' for x in xs)})"
        case Amax() | Amin():
            return _nested("fl_max" if isinstance(op, Amax) else "fl_min", kind, xs)
        case _:
            raise ScalarError(f"no reduction {op.name if op else ''} of {result}")


def _nested(function: str, kind: str, xs: Sequence[str]) -> str:
    text = xs[0]
    for x in xs[1:]:
        text = f"{function}<{kind}>({text}, {x})"
    return text


__all__ = ["Parts", "reduction", "unrolled"]
