"""Lowerings of routed experts, with and without a shared branch beside them."""

from __future__ import annotations

from typing import Any

from fuseline.codegen.cpu.element import Element, element
from fuseline.codegen.cpu.experts import ExpertsKernel, Part, SharedBranch, Strides, promoted
from fuseline.codegen.cpu.experts_choice import choose_experts
from fuseline.codegen.cpu.lower_linear import one_behind_the_other
from fuseline.codegen.cpu.scalar import ScalarError
from fuseline.codegen.forms import Form, When
from fuseline.codegen.lower import (
    WORKERS,
    Launch,
    Lowered,
    NeedDense,
    Refusal,
    Scratch,
    dtype_name,
    lowers,
    not_dense,
    unsupported,
)
from fuseline.codegen.lower import work as work_of
from fuseline.ir.core import Func, Value
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.experts import Experts, Moe
from fuseline.ir.region import RegionError
from fuseline.ir.types import Dim, bounds, product


class _Unsupported(ValueError):
    """Why there is no kernel for the op."""


@lowers(Experts, Moe)
def lower_experts(op: Experts, layouts: LayoutMap) -> Lowered:
    """Two launches: gate and up of every expert's tokens; down, and the sums."""
    try:
        fields = _fields(op)
    except (_Unsupported, RegionError, ScalarError) as error:
        return Refusal(str(error))
    for group in (op.up, op.down, _shared(op)[0]):
        loose = [v for v in group if not layouts.layout(v).is_dense(v.shape)]
        if loose:
            return Refusal(f"{loose[0].type} does not lie row by row in memory")
        if not one_behind_the_other(group, layouts):
            return Refusal(f"{', '.join(str(v.type) for v in group)} do not lie side by side")
    shared_down = _shared(op)[1]
    if shared_down is not None and not layouts.layout(shared_down).is_dense(shared_down.shape):
        return Refusal(f"{shared_down.type} does not lie row by row in memory")
    if need := _loose(op, layouts):
        return need
    return _launches(op, fields, layouts)


def _loose(op: Experts, layouts: LayoutMap) -> NeedDense | None:
    """The small operands that must be copied first."""
    need = not_dense((op.indices, op.weights, op.up_bias, op.down_bias), layouts)
    rows = [v for v in (op.x, _shared(op)[2]) if v is not None]
    loose = [v for v in rows if layouts.layout(v).row_stride(v.shape) is None]
    values = (*(need.values if need else ()), *loose)
    return NeedDense(values) if values else None


def _shared(op: Experts) -> tuple[tuple[Value, ...], Value | None, Value | None]:
    """Up, down and gate of the shared branch."""
    if isinstance(op, Moe) and op.shared_down is not None:
        return op.shared_up, op.shared_down, op.shared_gate
    return (), None, None


def _fields(op: Experts) -> dict[str, Any]:
    """The geometry, in the terms of the kernel.

    Raises:
        _Unsupported: the kernel does not do this.
        RegionError, ScalarError: nor this activation.
    """
    ups, shared_down, gate = _shared(op)
    matrices = (*op.up, *op.down, op.up_bias, op.down_bias, *ups, shared_down)
    if refusal := unsupported(op.x, op.weights, gate, *matrices):
        raise _Unsupported(refusal.reason)
    for value in matrices:
        if value is not None and value.dtype is not op.x.dtype:
            raise _Unsupported(f"x {op.x.type} with weight {value.type}")
    if op.dtype.value not in ("f32", "bf16", "f16"):
        raise _Unsupported(f"y of {op.dtype}; the kernel gives f32, bf16 and f16")
    out, inner = op.down[0].shape[-2:]
    if op.is_down_transposed:
        out, inner = inner, out
    hidden, inner, out = _known(op.x.shape[-1], inner, out)
    strides = _up_strides(op, hidden, inner)
    return {
        "experts": op.experts,
        "identities": op.identities,
        "top": _known(op.indices.shape[-1])[0],
        "hidden": hidden,
        "inner": inner,
        "out": out,
        "dtype": op.x.dtype.value,
        "weight_dtype": op.weights.dtype.value,
        "out_dtype": op.dtype.value,
        "body": _activation(op, op.body, 1 + op.gated),
        "up_strides": strides,
        "gated": op.gated,
        "interleaved": op.gated and op.interleaved,
        "up_transposed": op.transposed,
        "down_transposed": op.is_down_transposed,
        "up_bias": op.up_bias is not None,
        "down_bias": op.down_bias is not None,
        "round_bias": op.round_bias,
        "weigh": op.weigh,
        "combine": op.combine,
        "shared": _shared_branch(op),
        "routed_factor": op.routed_factor if isinstance(op, Moe) else 1.0,
        "factor": op.factor if isinstance(op, Moe) else 1.0,
    }


def _known(*dims: Dim) -> tuple[int, ...]:
    """Dims as numbers."""
    known = [d for d in dims if isinstance(d, int) and d > 0]
    if len(known) < len(dims):
        raise _Unsupported(f"widths {dims}; the kernel needs known ones")
    return tuple(known)


def _activation(op: Experts, body: Func, sides: int) -> Element:
    values = (*body.args, *body.returns)
    if len(body.args) != sides or any(v.dtype is not op.x.dtype for v in values):
        raise _Unsupported(f"an activation of {', '.join(str(v.type) for v in values)}")
    return element(body, ("g", "u")[:sides])


def _up_strides(op: Experts, hidden: int, inner: int) -> Strides:
    """Where gate and up lie: packed, apart, or one by one (see `Experts`)."""
    sides = 1 + op.gated
    many, rank = len(op.up), op.up[0].tensor.rank
    each = many if rank == 3 else many // op.experts
    rows = sides * inner // max(each, 1)
    wanted = (hidden, rows) if op.transposed else (rows, hidden)
    lead = (op.experts,) if rank == 3 else ()
    downs = 1 if op.down[0].tensor.rank == 3 else op.experts
    if each not in (1, sides) or many != each * (1 if lead else op.experts):
        raise _Unsupported(f"{many} matrices {op.up[0].type} for {op.experts} experts")
    if any(v.shape != (*lead, *wanted) for v in op.up) or len(op.down) != downs:
        raise _Unsupported(f"up {op.up[0].type} with down {op.down[0].type}")
    apart = each == 2
    if apart and op.interleaved and (op.transposed or lead):
        raise _Unsupported("gate and up apart, yet interleaved")
    row = rows if op.transposed else hidden
    one = rows * hidden
    if not apart:
        return one, inner if op.transposed else inner * hidden, row
    return (one, op.experts * one, row) if lead else (2 * one, one, row)


def _shared_branch(op: Experts) -> SharedBranch | None:
    ups, down, gate = _shared(op)
    if down is None:
        return None
    assert isinstance(op, Moe)
    if op.shared_body is None:
        raise _Unsupported("a shared branch without an activation")
    inner = _known(down.shape[1])[0]
    if not 1 <= len(ups) <= 2 or any(v.shape[0] != inner for v in ups):
        raise _Unsupported(f"shared up {', '.join(str(v.type) for v in ups)}")
    if promoted(op.x.dtype.value, op.dtype.value) != op.dtype.value:
        raise _Unsupported(f"a shared branch of {op.x.dtype} is added to {op.dtype}")
    body = _activation(op, op.shared_body, len(ups))
    return SharedBranch(inner, len(ups) == 2, body, dtype_name(gate))


def _launches(op: Experts, fields: dict[str, Any], layouts: LayoutMap) -> list[Launch]:
    tokens, pairs = op.x.shape[0], product(op.indices.shape)
    shared_up, shared_down, gate = _shared(op)
    ups, downs = (op.up[0], op.up_bias, *shared_up[:1]), (op.down[0], op.down_bias, shared_down)
    given = (op.indices, op.weights, op.x, *ups, *downs, gate, op.y)
    buffers = [v for v in given if v is not None]
    rows = [layouts.layout(v).row_stride(v.shape) for v in (op.x, op.y, gate) if v is not None]
    strides = [s for s in rows if s is not None]
    kernel = ExpertsKernel(**fields)

    def launch(part: Part, columns: int, when: When = None, form: Form | None = None) -> Launch:
        scratch = Scratch(kernel.scratch_bytes(tokens, columns, WORKERS))
        dims = (part.value, columns, tokens, *strides)
        return Launch(kernel, (*buffers, scratch), dims, work_of(op), when, form)

    low, high = bounds(pairs, layouts.func.symbols)
    choices = choose_experts(transposed=op.is_down_transposed, least=low, most=high)
    launches = [launch(Part.UP, 1)]  # no columns wait in it
    for first, last, columns in choices:
        when = None if len(choices) == 1 else (pairs, first, last)
        form = Form("columns of down at once", str(columns), "pairs of a token and an expert")
        launches.append(launch(Part.DOWN, columns, when, form))
    return launches
