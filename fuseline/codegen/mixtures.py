"""What routed experts and the shared branch beside them compute, for every target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fuseline.codegen.lower import NeedDense, Refusal, dtype_name, not_dense, unsupported
from fuseline.codegen.packed import one_behind_the_other
from fuseline.ir.core import Func, Value
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.experts import Combine, Experts, Moe, Weigh
from fuseline.ir.types import Dim

Strides: TypeAlias = tuple[int, int, int]
"""Elements from an expert's gate to the next expert's, to its own up, and from row to row."""


@dataclass(frozen=True)
class Element:
    """Statements over the names of the operands, and the expression of the result, rounded."""

    statements: tuple[str, ...]
    result: str


Write: TypeAlias = Callable[[Func, Sequence[str]], "Element | Refusal"]
"""Writes one element of an element-wise func in a target's language."""


@dataclass(frozen=True)
class SharedBranch:
    """The branch that all tokens go through: its width and activation, the type of its gate."""

    inner: int
    gated: bool
    body: Element
    gate_dtype: str | None = None


@dataclass(frozen=True)
class Mixture:
    """Experts, as an op has them (see `fuseline.ir.ops.experts` for what is computed).

    Attributes:
        experts: how many there are.
        identities: how many numbers behind theirs stand for x itself.
        top: experts of a token.
        hidden, inner, out: widths of x, of an expert, and of y.
        dtype: of x, the matrices and the biases; what products round to.
        weight_dtype: of the router's weights.
        out_dtype: of y.
        body: the activation, over ``g`` and, where ``gated``, ``u``.
        interleaved: gate and up are every second row of one matrix.
        up_transposed, down_transposed: those matrices lie ``[K, N]``.
        up_strides: where the matrices of gate and up lie; transposed, rows run along N.
        up_bias, down_bias, round_bias, weigh, combine, routed_factor, factor: as the op
            has them.
        shared: the shared branch, if there is one.
    """

    experts: int
    top: int
    hidden: int
    inner: int
    out: int
    dtype: str
    weight_dtype: str
    out_dtype: str
    body: Element
    up_strides: Strides
    identities: int = 0
    gated: bool = True
    interleaved: bool = False
    up_transposed: bool = False
    down_transposed: bool = False
    up_bias: bool = False
    down_bias: bool = False
    round_bias: bool = True
    weigh: Weigh = "output"
    combine: Combine = "slots"
    shared: SharedBranch | None = None
    routed_factor: float = 1.0
    factor: float = 1.0

    @property
    def title(self) -> str:
        """What is done, for the head of a source."""
        form = "gated, " * self.gated + "interleaved, " * self.interleaved
        form += "up [K, N], " * self.up_transposed + "down [K, N], " * self.down_transposed
        many = f"{self.experts}" + f" and {self.identities} times x" * bool(self.identities)
        size = f"{self.top} of {many}, {self.hidden} to {self.inner} to {self.out}"
        shared = f", shared {self.shared.inner}" if self.shared else ""
        return f"experts: {size}{shared}, {form}{self.dtype}, y {self.out_dtype}"


class _Unsupported(ValueError):
    """Why there is no kernel for the op."""


def mixture_of(op: Experts, layouts: LayoutMap, write: Write) -> Mixture | NeedDense | Refusal:
    """What an op computes, or what it lacks for kernels over rows and packed matrices."""
    try:
        mixture = _mixture(op, write)
    except _Unsupported as error:
        return Refusal(str(error))
    shared_up, shared_down, _ = shared_operands(op)
    for group in (op.up, op.down, shared_up):
        loose = [v for v in group if not layouts.layout(v).is_dense(v.shape)]
        if loose:
            return Refusal(f"{loose[0].type} does not lie row by row in memory")
        if not one_behind_the_other(group, layouts):
            return Refusal(f"{', '.join(str(v.type) for v in group)} do not lie side by side")
    if shared_down is not None and not layouts.layout(shared_down).is_dense(shared_down.shape):
        return Refusal(f"{shared_down.type} does not lie row by row in memory")
    return _loose(op, layouts) or mixture


def _loose(op: Experts, layouts: LayoutMap) -> NeedDense | None:
    """The small operands that must be copied first."""
    need = not_dense((op.indices, op.weights, op.up_bias, op.down_bias), layouts)
    rows = [v for v in (op.x, shared_operands(op)[2]) if v is not None]
    loose = [v for v in rows if layouts.layout(v).row_stride(v.shape) is None]
    values = (*(need.values if need else ()), *loose)
    return NeedDense(values) if values else None


def shared_operands(op: Experts) -> tuple[tuple[Value, ...], Value | None, Value | None]:
    """Up, down and gate of the shared branch."""
    if isinstance(op, Moe) and op.shared_down is not None:
        return op.shared_up, op.shared_down, op.shared_gate
    return (), None, None


def _mixture(op: Experts, write: Write) -> Mixture:
    """The geometry.

    Raises:
        _Unsupported: no kernel does this.
    """
    ups, shared_down, gate = shared_operands(op)
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
    return Mixture(
        experts=op.experts,
        identities=op.identities,
        top=_known(op.indices.shape[-1])[0],
        hidden=hidden,
        inner=inner,
        out=out,
        dtype=op.x.dtype.value,
        weight_dtype=op.weights.dtype.value,
        out_dtype=op.dtype.value,
        body=_activation(op, op.body, 1 + op.gated, write),
        up_strides=_up_strides(op, hidden, inner),
        gated=op.gated,
        interleaved=op.gated and op.interleaved,
        up_transposed=op.transposed,
        down_transposed=op.is_down_transposed,
        up_bias=op.up_bias is not None,
        down_bias=op.down_bias is not None,
        round_bias=op.round_bias,
        weigh=op.weigh,
        combine=op.combine,
        shared=_shared_branch(op, write),
        routed_factor=op.routed_factor if isinstance(op, Moe) else 1.0,
        factor=op.factor if isinstance(op, Moe) else 1.0,
    )


def _known(*dims: Dim) -> tuple[int, ...]:
    """Dims as numbers."""
    known = [d for d in dims if isinstance(d, int) and d > 0]
    if len(known) < len(dims):
        raise _Unsupported(f"widths {dims}; the kernel needs known ones")
    return tuple(known)


def _activation(op: Experts, body: Func, sides: int, write: Write) -> Element:
    values = (*body.args, *body.returns)
    if len(body.args) != sides or any(v.dtype is not op.x.dtype for v in values):
        raise _Unsupported(f"an activation of {', '.join(str(v.type) for v in values)}")
    found = write(body, ("g", "u")[:sides])
    if isinstance(found, Refusal):
        raise _Unsupported(found.reason)
    return found


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


def _shared_branch(op: Experts, write: Write) -> SharedBranch | None:
    ups, down, gate = shared_operands(op)
    if down is None:
        return None
    assert isinstance(op, Moe)
    if op.shared_body is None:
        raise _Unsupported("a shared branch without an activation")
    inner = _known(down.shape[1])[0]
    if not 1 <= len(ups) <= 2 or any(v.shape[0] != inner for v in ups):
        raise _Unsupported(f"shared up {', '.join(str(v.type) for v in ups)}")
    x, y = op.x.dtype.value, op.dtype.value
    if x != y and y != "f32":
        raise _Unsupported(f"a shared branch of {op.x.dtype} is added to {op.dtype}")
    body = _activation(op, op.shared_body, len(ups), write)
    return SharedBranch(inner, len(ups) == 2, body, dtype_name(gate))


__all__ = [
    "Element",
    "Mixture",
    "SharedBranch",
    "Strides",
    "Write",
    "mixture_of",
    "shared_operands",
]
