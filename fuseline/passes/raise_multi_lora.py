"""Recognise low-rank adapters of which each row has its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fuseline.ir.core import Func, Op, Value
from fuseline.ir.ops.adapters import MultiLora
from fuseline.ir.ops.call import AtenCall
from fuseline.ir.ops.matmul import Matmul
from fuseline.ir.ops.pointwise import Cast, Mul
from fuseline.ir.ops.reduce import Sum
from fuseline.ir.types import Dim, DType, same
from fuseline.passes.adapter_end import End, follow, scaled
from fuseline.passes.adapter_misses import adapter_miss
from fuseline.passes.adapter_numbers import count_of, factors_of, limit_of, numbers_of
from fuseline.passes.adapter_products import AdapterProduct, adapter_product
from fuseline.passes.adapter_rows import keeps_order, row_axis, viewed
from fuseline.passes.expert_body import Refused
from fuseline.passes.expert_products import lie_within
from fuseline.passes.expert_rows import uncast
from fuseline.passes.match import reshaped
from fuseline.passes.rewrite import NoMatch, Replace, Rewrite
from fuseline.passes.wording import called, readers_beside


@dataclass(frozen=True)
class RaiseMultiLora(Rewrite[Op], root=(Matmul, Sum, AtenCall), pattern="multi_lora"):
    """Two products by matrices that were gathered for each row, and a sum, become `multi_lora`.

    A row or a sequence has the number of its adapter. The products may be batched, or be written
    as a multiplication and a sum; one of them may be multiplied by a number, by a factor of each
    row, or by a mask of those that have an adapter.

    Before:
        func @f(%x: f32[B, S, 8], %ids: i64[B], %w: f32[6, 8], %a: f32[3, 4, 8], %b: f32[3, 6, 4]) {
          %base = linear %x, %w
          %scale = full {value = 0.5, dtype = f32}
          %down = index %a, [%ids] {axes = (0,)}
          %up = index %b, [%ids] {axes = (0,)}
          %down_t = permute %down {dims = (0, 2, 1)}
          %up_t = permute %up {dims = (0, 2, 1)}
          %low = matmul %x, %down_t
          %delta = matmul %low, %up_t
          %scaled = mul %delta, %scale
          %y = add %base, %scaled
          return %y
        }
    After:
        func @f(%x: f32[B, S, 8], %ids: i64[B], %w: f32[6, 8], %a: f32[3, 4, 8], %b: f32[3, 6, 4]) {
          %base = linear %x, %w
          %each = reshape %ids {shape = (B, 1)}
          %rows = expand %each {shape = (B, S)}
          %zero = full {value = 0, dtype = i64}
          %below = lt %rows, %zero
          %n = full {value = 3, dtype = i64}
          %from_end = add %rows, %n
          %number = where %below, %from_end, %rows
          %y = multi_lora %x, %number, %a, %b, %base {
            scale = 0.5, delta_dtype = f32, dtype = f32
          }
          return %y
        }

    Before:
        func @f(%x: f32[T, 8], %ids: i64[T], %r: f32[T, 6], %a: f32[3, 8, 4], %b: f32[3, 4, 6]) {
          %row = reshape %x {shape = (T, 1, 8)}
          %down = index_select %a, %ids {axis = 0}
          %up = index_select %b, %ids {axis = 0}
          %low = matmul %row, %down
          %wide = matmul %low, %up
          %delta = reshape %wide {shape = (T, 6)}
          %y = add %r, %delta
          return %y
        }
    After:
        func @f(%x: f32[T, 8], %ids: i64[T], %r: f32[T, 6], %a: f32[3, 8, 4], %b: f32[3, 4, 6]) {
          %y = multi_lora %x, %ids, %a, %b, %r {
            a_transposed = true, b_transposed = true, delta_dtype = f32, dtype = f32
          }
          return %y
        }
    """

    reorders = True  # the products of an adapter's rows may be summed in another order

    def rewrite(self, op: Op, func: Func) -> Replace | NoMatch | None:
        up = adapter_product(op)
        try:
            found = None if up is None else _raised(up, func)
        except Refused as refused:
            return NoMatch(str(refused))
        if found is None and (reason := adapter_miss(op)):
            return NoMatch(reason)
        return found


def _raised(up: AdapterProduct, func: Func) -> Replace | None:
    middle = _before(up)
    if middle is None:
        return None
    down, inner, inside = middle
    if lie_within(uncast(up.numbers.value), count_of(up)):
        return None  # a router chose: these are experts
    _check(down, up)
    for op in (down.op, *inside):
        for value in op.results:
            if readers := readers_beside(func, value, {*inside, up.op, *_around(up)}):
                raise Refused(f"{called(value)} between the products is read by {readers}")
    end = _end(up, func)
    if (inner.scale, inner.factor) != (1.0, None):
        if (end.scale, end.factor) != (1.0, None):
            raise Refused("both products of the adapters are scaled")
        if up.base is not None:
            raise Refused("the first product is scaled, and the second one is not rounded")
    fused = _multi_lora(down, up, inner, end)
    held = (
        "both products are by the matrices of one adapter for each row",
        "nothing else reads what is between them",
    )
    y = reshaped(fused.y, end.y.shape)
    return Replace({end.y: y}, before=end.y.owner, held=held, work=fused)


def _around(up: AdapterProduct) -> tuple[Op, ...]:
    """The multiplication before a sum, which is part of the product."""
    return (up.op.x.owner,) if isinstance(up.op, Sum) and up.op.x.owner is not None else ()


def _before(up: AdapterProduct) -> tuple[AdapterProduct, End, list[Op]] | None:
    """The product whose rows the second one reads, what scales them, and the ops between."""
    value, inside = up.rows, list[Op]()
    scale = End(value, value.dtype)
    while (op := value.owner) is not None:
        down = adapter_product(op)
        if down is not None:
            return (down, scale, inside) if down.base is None else None
        inside.append(op)
        if keeps_order(op):
            value = op.operands[0]
            continue
        match op:
            case Mul(lhs, rhs):
                step = _unscaled(op, lhs, rhs, up.depth, scale)
                if step is None:
                    return None
                value, scale = step
            case Cast(x) if not scale.cast and (scale.scale, scale.factor) == (1.0, None):
                value, scale = x, replace(scale, cast=True)
            case _:
                return None
    return None


def _unscaled(op: Mul, lhs: Value, rhs: Value, width: Dim, scale: End) -> tuple[Value, End] | None:
    """The rows that a multiplication scales, and by what."""
    for rows, by in ((lhs, rhs), (rhs, lhs)):
        if rows.shape != op.y.shape or row_axis(rows, width) is None:
            continue
        found = scaled(rows, by, width, scale, earlier=True)
        if found is not None and found.keep is None:
            return rows, found
    return None


def _end(up: AdapterProduct, func: Func) -> End:
    """What the op gives."""
    if up.base is not None:
        return End(up.y, DType.F32, scale=up.scale, base=up.base)
    return follow(func, End(up.y, up.y.dtype), up.width)


def _check(down: AdapterProduct, up: AdapterProduct) -> None:
    """Both products must be of the same rows and the same adapters."""
    for product in (down, up):
        if product.stack.changed:
            raise Refused(
                f"the matrices of {called(product.stack.values)} are {product.stack.changed} "
                "after they were gathered"
            )
    if viewed(down.numbers.value) is not viewed(up.numbers.value):
        raise Refused(
            f"one product is by the matrices numbered {called(viewed(down.numbers.value))}, "
            f"the other by those numbered {called(viewed(up.numbers.value))}"
        )
    if count_of(down) != count_of(up):
        raise Refused(f"{count_of(down)} adapters in one product, {count_of(up)} in the other")
    limits = down.stack.active, up.stack.active
    if limits != (None, None) and (None in limits or not same(limit_of(down), limit_of(up))):
        raise Refused(f"{limit_of(down)} adapters in one product, {limit_of(up)} in the other")
    if not same(down.width, up.depth):
        raise Refused(f"the first product is {down.width} wide, the second reads {up.depth}")
    if down.rows.dtype is not up.rows.dtype:
        raise Refused(f"the products are {down.rows.dtype} and {up.rows.dtype}")


def _multi_lora(down: AdapterProduct, up: AdapterProduct, inner: End, end: End) -> MultiLora:
    axis = row_axis(end.y, up.width)
    assert axis is not None, "columns stay where they are, but for dims of 1"
    lead = end.y.shape[:axis]
    scale = inner if (inner.scale, inner.factor) != (1.0, None) else end
    (a, a_transposed), (b, b_transposed) = down.matrices, up.matrices
    base = None if end.base is None else reshaped(end.base, (*lead, up.width))
    numbers = numbers_of(down, up, end, lead)
    return MultiLora(
        reshaped(viewed(down.rows), (*lead, down.depth)),
        numbers,
        a,
        b,
        base,
        None if scale.factor is None else factors_of(scale.factor, up, numbers, lead),
        scale=scale.scale,
        inner=scale is inner and scale is not end,
        a_transposed=a_transposed,
        b_transposed=b_transposed,
        skips=end.keep is not None,
        rounds=up.base is None,
        active=up.stack.active,
        delta_dtype=end.delta,
        dtype=end.y.dtype,
    )


__all__ = ["RaiseMultiLora"]
