"""What the kernels of routed experts take, as far as a pass can tell.

Where none takes them, the op would run by its reference: expert by expert in a loop, slower than
the products that it stands for. Such experts are left as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fuseline.ir.core import Func, Value
from fuseline.ir.layout import Layout, dense, result_layout, view_layout
from fuseline.ir.ops.create import Full
from fuseline.ir.ops.experts import Experts
from fuseline.ir.ops.view import Expand, Permute, Reshape, Slice
from fuseline.ir.types import DType
from fuseline.passes.expert_products import SWAPPED
from fuseline.passes.merge_linears import unpackable
from fuseline.passes.wording import called

KERNEL_TYPES = (DType.F32, DType.BF16, DType.F16)
"""The element types that there are kernels for."""


def as_given(op: Experts) -> Experts:
    """The op on its matrices as they lie, where a view turns all those of one product."""
    turned = op.transposed, op.is_down_transposed
    (ups, up), (downs, down) = (
        _unturned(values, t) for values, t in zip((op.up, op.down), turned, strict=True)
    )
    if (ups, downs) == (op.up, op.down):
        return op
    given = (op.x, op.indices, op.weights, ups, downs, op.up_bias, op.down_bias)
    form: dict[str, Any] = {"transposed": up, "down_transposed": None if up is down else down}
    return Experts(*given, **op.attributes | form)


def _unturned(matrices: tuple[Value, ...], transposed: bool) -> tuple[tuple[Value, ...], bool]:
    moved = [v.owner for v in matrices if isinstance(v.owner, Permute) and v.owner.dims == SWAPPED]
    if len(moved) < len(matrices):
        return matrices, transposed
    return tuple(op.x for op in moved), not transposed


def unfit(op: Experts, func: Func) -> str:
    """Why no kernel takes experts; empty where one does."""
    return _unfit_types(op) or _unfit_matrices(op, func) or _unfit_body(op)


def _unfit_types(op: Experts) -> str:
    matrices = [v for v in (*op.up, *op.down, op.up_bias, op.down_bias) if v is not None]
    types = {"x": op.x.dtype, "the weights": op.weights.dtype, "y": op.dtype}
    for name, dtype in (*types.items(), *((called(v), v.dtype) for v in matrices)):
        if dtype not in KERNEL_TYPES:
            known = ", ".join(map(str, KERNEL_TYPES))
            return f"{name} of the experts is {dtype}: there are kernels for {known}"
    for value in matrices:
        if value.dtype is not op.x.dtype:
            return f"x {op.x.type} is multiplied by {called(value)}, {value.type}"
    return ""


def _unfit_matrices(op: Experts, func: Func) -> str:
    """What the kernels ask of the matrices: alike, row by row, and side by side."""
    if not isinstance(op.indices.shape[-1], int):
        return f"the experts of a token are as many as {op.indices.shape[-1]}"
    for values in (op.up, op.down):
        for value in values:
            if value.shape != values[0].shape:
                return f"{called(value)} is {value.type}, {called(values[0])} {values[0].type}"
            if not _layout(value).is_dense(value.shape):
                return f"{called(value)}, {value.type}, does not lie row by row in memory"
        if twice := [v for v in values if values.count(v) > 1]:
            return f"{called(twice[0])} is the matrix of {values.count(twice[0])} experts"
        reasons = [
            unpackable(func, v, "weight", readers=_readers(v, op.experts, func))
            for v in values
            if len(values) > 1
        ]
        if any(reasons):
            return next(r for r in reasons if r)
    return ""


def _readers(value: Value, experts: int, func: Func) -> int:
    """How often experts read a matrix: all at once, or in a loop each its own part."""
    users = func.users(value)
    parts = [u for u in users if isinstance(u, Slice) and u.axis == 0]
    return experts if len(parts) == len(users) == experts else 1


def _layout(value: Value) -> Layout:
    """How a value lies in memory, arguments row by row."""
    match value.owner:
        case Reshape() | Permute() | Expand() | Slice() as op:
            return view_layout(op, _layout(op.x)) or dense(value.shape)
        case None:
            return dense(value.shape)
        case op:
            return result_layout(op, value)


def _unfit_body(op: Experts) -> str:
    values: Sequence[Value] = (*op.body.args, *op.body.returns)
    if any(v.dtype is not op.x.dtype for v in values):
        types = ", ".join(str(v.type) for v in values)
        return f"the activation of experts of {op.x.dtype} is of {types}"
    for inner in op.body.ops:
        if isinstance(inner, Full) and not isinstance(inner.value, bool | int | float):
            return f"the activation reads {inner.value}, known only when the program runs"
    return ""


__all__ = ["KERNEL_TYPES", "as_given", "unfit"]
