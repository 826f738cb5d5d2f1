"""Merge sibling products: linears that read the same x become one product of packed weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fuseline.ir.core import Func, Value
from fuseline.ir.ops.fused import MergedLinear
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.ops.view import unreshaped
from fuseline.ir.types import DType
from fuseline.passes.rewrite import NoMatch, Replace, Rewrite
from fuseline.passes.wording import called, maker, name_of


def unpackable(func: Func, weight: Value, label: str, *, readers: int = 1) -> str:
    """Why a weight cannot be packed beside others; empty where it can. ``label`` says which it is.

    Packing moves the memory of a parameter: it must be one, in whatever shape, have no other reader
    (a tied weight has its place elsewhere) than the ``readers`` that go away, and not be pinned by
    its origin.
    """
    if (whole := unreshaped(weight)) is not weight:
        if (count := func.use_count(weight)) != readers:
            return f"{label} {name_of(whole)} is read {count} times"
        weight, readers = whole, 1
    origin = weight.origin
    if weight.owner is not None or origin is None or origin.kind != "param":
        return f"{label} comes from {maker(weight)}, not from a parameter"
    if origin.pinned:
        return f"{label} {name_of(weight)} is pinned: {origin.pinned}"
    if (count := func.use_count(weight)) != readers:
        return f"{label} {name_of(weight)} is read {count} times"
    return ""


def linear_unpackable(func: Func, op: Linear) -> str:
    """Why the parameters of a product cannot be packed; empty where they can."""
    for label, value in (("weight", op.weight), ("bias", op.bias)):
        if value is not None and (reason := unpackable(func, value, label)):
            return reason
    return ""


@dataclass(frozen=True)
class MergeLinears(Rewrite[Linear], root=Linear, pattern="merged_linear"):
    """Turn the products that read the same x into one, over weights that lie side by side.

    The weights must be parameters that nothing else reads, of one element type, with biases for
    all of them or for none: the first call packs them into one buffer.

    Before:
        func @f(%x: bf16[B, 8], %q: bf16[6, 8] = param "q", %k: bf16[3, 8] = param "k") {
          %a = linear %x, %q
          %b = linear %x, %k
          return %a, %b
        }
    After:
        func @f(%x: bf16[B, 8], %q: bf16[6, 8] = param "q", %k: bf16[3, 8] = param "k") {
          %a, %b = merged_linear %x, [%q, %k]
          return %a, %b
        }
    """

    def rewrite(self, op: Linear, func: Func) -> Replace | NoMatch | None:
        readers = func.users(op.x)
        siblings = [s for s in readers if isinstance(s, Linear) and s.x is op.x]
        if len(siblings) + sum(isinstance(s, MergedLinear) for s in readers) < 2:
            return None
        siblings.sort(key=func.places.__getitem__)
        reasons = {s: linear_unpackable(func, s) for s in siblings}
        groups = _groups([s for s in siblings if not reasons[s]])
        for group in groups:
            if len(group) > 1:
                return _merge(group)
        if op is not siblings[0]:
            return None  # one miss for all of them, at the first
        held = (f"{len(siblings)} products read one x",)
        return NoMatch("; ".join(_why(s, reasons[s]) for s in siblings), held=held)


def _groups(siblings: Iterable[Linear]) -> list[list[Linear]]:
    """The siblings whose weights, and biases, can lie in one buffer."""
    groups: dict[tuple[DType, DType | None], list[Linear]] = {}
    for s in siblings:
        bias = None if s.bias is None else s.bias.dtype
        groups.setdefault((s.weight.dtype, bias), []).append(s)
    return list(groups.values())


def _merge(group: Sequence[Linear]) -> Replace:
    biases = [s.bias for s in group if s.bias is not None]
    fused = MergedLinear(group[0].x, tuple(s.weight for s in group), tuple(biases))
    fused.loc = group[0].loc
    names = ", ".join(s.weight.origin.name for s in group if s.weight.origin)
    return Replace(
        {s.y: y for s, y in zip(group, fused.ys, strict=True)},
        before=group[0],
        held=("one x", "each weight is a parameter with one reader", "one element type"),
        details={"weights": names},
    )


def _why(op: Linear, reason: str) -> str:
    if reason:
        return reason
    bias = "no bias" if op.bias is None else f"a bias of {op.bias.dtype}"
    return f"weight {called(op.weight)} of {op.weight.dtype} with {bias} has no sibling like it"
