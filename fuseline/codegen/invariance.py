"""Which ops may run where each row's bits must not depend on the rows beside it.

A kernel says so of itself (`KernelTemplate.why_varies`). Here is what torch does in the place of
one: moving, comparing and choosing elements is exact, and so is any sum of integers; arithmetic
that is rounded once is the same however elements are grouped. All else torch cuts by the number of
rows: products, reductions, and functions such as exp, of which the last elements of a tensor are
computed in another way than those that fill vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from fuseline.codegen.lower import Emitted
from fuseline.ir.core import Op
from fuseline.ir.ops.call import AtenCall, called
from fuseline.ir.ops.index import IndexPut
from fuseline.ir.types import BufferType, TensorType

BY_ROWS = "torch chooses how it adds by the number of rows"
UNKNOWN = "it is not known to compute a row alike whatever their number"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


MOVES = _names("""
    concat copy embedding expand full gather index index_copy index_put index_select index_write
    iota pad permute read reshape scatter shift_write slice slice_scatter slice_write write
""")
"""Ops of the IR whose references move elements."""

CHOOSES = _names("""
    all amax amin any argmax eq ge gt le logical_and logical_not logical_or lt maximum minimum ne
    sort topk where
""")
"""Those that compare and choose."""

ROUNDS_ONCE = _names("abs add cast ceil div floor mul neg reciprocal relu sign sqrt sub")
"""Those whose result is the exact one, rounded."""

ATEN_MOVES = _names("""
    _to_copy _unsafe_view alias as_strided cat chunk clone contiguous copy copy_ detach diagonal
    embedding empty empty_like expand eye flip full full_like gather index index_copy index_fill
    index_select lift_fresh_copy masked_fill masked_scatter new_empty new_full new_ones new_zeros
    ones ones_like permute pixel_shuffle repeat repeat_interleave reshape roll scatter select
    select_scatter slice slice_scatter split split_with_sizes squeeze stack t take take_along_dim
    transpose tril triu unbind unfold unsqueeze view zeros zeros_like
""")
ATEN_CHOOSES = _names("""
    all amax amin any argmax argmin argsort clamp clamp_max clamp_min eq ge gt isfinite isin isinf
    isnan kthvalue le logical_and logical_not logical_or logical_xor lt max maximum min minimum ne
    nonzero searchsorted sort topk where
""")
ATEN_ROUNDS_ONCE = _names(
    "abs add ceil div floor mul neg reciprocal relu round sign sqrt sub trunc"
)
ATEN = ATEN_MOVES | ATEN_CHOOSES | ATEN_ROUNDS_ONCE
"""Operators of ATen of all three kinds, by name: for their overloads see `_aten_varies`."""


@dataclass(frozen=True)
class Varies:
    """A part of a program that does not keep the bits of its rows.

    Attributes:
        what: the kernel, or what torch runs.
        op: whose.
        reason: why.
    """

    what: str
    op: Op
    reason: str


def varying(emitted: Sequence[Emitted]) -> Iterator[Varies]:
    """What in a program does not promise that the bits of a row are its own."""
    for item in emitted:
        if not item.launches:
            if reason := why_reference_varies(item.op):
                yield Varies(f"{called(item.op)} by torch", item.op, f"{reason} ({item.refusal})")
            continue
        kernels = [launch.kernel for launch in item.launches]
        if len({n.when for n in item.launches}) > 1 and not all(k.per_element for k in kernels):
            yield Varies(kernels[0].family, item.op, "it has another form for other sizes")
            continue
        for launch in item.launches:
            if reason := launch.kernel.why_varies():
                yield Varies(launch.kernel.family, item.op, reason)
                break


def why_reference_varies(op: Op) -> str:
    """Why an op's reference does not keep the bits of its rows; empty where it does."""
    if isinstance(op, IndexPut) and op.accumulate and _floats(op):
        return "torch adds in an order of its own"
    if op.name in MOVES | CHOOSES | ROUNDS_ONCE or not _floats(op):
        return ""
    return _aten_varies(op) if isinstance(op, AtenCall) else BY_ROWS


def _aten_varies(op: AtenCall) -> str:
    """Why a call of an operator of ATen does not keep the bits of its rows; empty where it does.

    A name may have overloads that do more: a scatter that adds or multiplies, and a sum whose
    second operand is multiplied first, which vectors round once and other elements perhaps twice.
    """
    namespace, name, overload = op.target.split(".", 2)
    if namespace != "aten" or name not in ATEN:
        return UNKNOWN
    if name == "scatter" and overload in ("reduce", "value_reduce"):
        return "torch adds or multiplies in an order of its own"
    if name in ("add", "sub") and _alpha(op) != 1:
        return "torch multiplies by alpha first, rounded or not as elements are grouped"
    return ""


def _alpha(op: AtenCall) -> object:
    """The factor of the second operand of a sum or a difference."""
    named = {str(key): value for key, value in cast("Any", op.kwargs)}
    return named.get("alpha", op.args[2] if len(op.args) > 2 else 1)


def _floats(op: Op) -> bool:
    """Whether an op reads or makes numbers that are rounded; the IR has no complex types."""
    types = [v.type for v in (*op.operands, *op.results)]
    kinds = [t.dtype.torch for t in types if isinstance(t, TensorType)]
    kinds += [t.tensor.dtype.torch for t in types if isinstance(t, BufferType)]
    return any(kind.is_floating_point for kind in kinds)


__all__ = ["Varies", "varying", "why_reference_varies"]
