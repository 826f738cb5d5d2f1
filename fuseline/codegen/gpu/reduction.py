"""Reductions along the rows of a tile in Triton.

Sums of floating numbers are accumulated in float32, f64 in float64, others in int64; a NaN anywhere
is the largest and the smallest element.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fuseline.codegen.gpu.scalar import ScalarError, Term, computed, convert, literal, widened
from fuseline.ir.ops.reduce import All, Amax, Amin, Any, Mean, Sum
from fuseline.ir.region import Node
from fuseline.ir.types import DType

_NARROW = (DType.I16, DType.I8, DType.U8, DType.BOOL)


@dataclass(frozen=True)
class Part:
    """One running value of a reduction: where it starts, and how an element is taken in.

    ``step`` has ``{a}`` for the value and ``{x}`` for the element, ``over`` the function of Triton
    that joins the elements of a row.
    """

    kind: str
    first: str
    element: str
    step: str
    over: str


@dataclass(frozen=True)
class Reduction:
    """The parts of a reduction, and its value in terms of them: ``{0}``, ``{1}``."""

    parts: tuple[Part, ...]
    result: str


def reduction(node: Node, x: Term, count: str) -> Reduction:
    """How ``x`` is reduced over ``count`` elements.

    Raises:
        ScalarError: an op or type that has no such form.

    """
    op, result = node.op, node.value.dtype
    match op:
        case Sum() | Mean() if result.is_float:
            kind = computed(result)
            total = Part(kind, literal(0, result), x.text, "({a} + {x})", "tl.sum")
            if isinstance(op, Sum):
                return Reduction((total,), "{0}")
            share = convert(widened(count), DType.I64, result)
            mean = f"({{0}} / {share})" if result is DType.F64 else f"tl.div_rn({{0}}, {share})"
            return Reduction((total,), mean)
        case Sum():
            element = convert(x.text, x.dtype, DType.I64)
            first = literal(0, DType.I64)
            return Reduction((Part("tl.int64", first, element, "({a} + {x})", "tl.sum"),), "{0}")
        case Any() | All():
            sign = "!=" if isinstance(op, Any) else "=="
            element = f"({x.text} {sign} 0).to(tl.int32)"
            part = Part("tl.int32", literal(0, DType.I32), element, "({a} | {x})", "tl.max")
            return Reduction((part,), f"({{0}} {sign} 0)")
        case Amax() | Amin():
            return _extreme(op, x, result)
        case _:
            raise ScalarError(f"no reduction {op.name if op else ''} of {result}")


def _extreme(op: Amax | Amin, x: Term, result: DType) -> Reduction:
    largest = isinstance(op, Amax)
    sign, over = (">", "tl.max") if largest else ("<", "tl.min")
    step = f"tl.where({{x}} {sign} {{a}}, {{x}}, {{a}})"
    if not result.is_float:
        wide = DType.I32 if result in _NARROW else result
        bits = 8 * wide.itemsize - 1
        first = literal(-(1 << bits) if largest else (1 << bits) - 1, wide)
        part = Part(computed(wide), first, convert(x.text, x.dtype, wide), step, over)
        return Reduction((part,), convert("{0}", wide, result))
    first = literal(float("-inf") if largest else float("inf"), result)
    nan = Part(
        "tl.int32", literal(0, DType.I32), f"({x.text} != {x.text}).to(tl.int32)", "({a} | {x})",
        "tl.max",
    )  # fmt: skip
    part = Part(computed(result), first, x.text, step, over)
    return Reduction((part, nan), 'tl.where({1} != 0, float("nan"), {0})')


def unrolled(node: Node, xs: Sequence[Term], name: str) -> tuple[list[str], str]:
    """The reduction of a few elements that are all at hand: statements and the value."""
    lines: list[str] = []
    first = reduction(node, xs[0], str(len(xs)))
    names = [f"{name}_{k}" for k in range(len(first.parts))]
    for at, x in enumerate(xs):
        found = reduction(node, x, str(len(xs)))
        for own, part in zip(names, found.parts, strict=True):
            text = part.element if at == 0 else part.step.format(a=own, x=part.element)
            lines.append(f"{own} = {text}")
    return lines, first.result.format(*names)


__all__ = ["Part", "Reduction", "reduction", "unrolled"]
