"""Recognise attention over what a narrow latent expands to (MLA)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fuseline.ir.core import Func, Op, Trait, Value
from fuseline.ir.ops.buffer import Read
from fuseline.ir.ops.latent import LatentAttention
from fuseline.ir.ops.matmul import Linear, Matmul
from fuseline.ir.ops.raised import Attention, LayerNorm, RmsNorm
from fuseline.ir.ops.view import Concat, Slice
from fuseline.ir.types import DType
from fuseline.passes.latent_details import Latents, latent_details, product_behind
from fuseline.passes.latent_forms import Expanded, Shared, expanded
from fuseline.passes.masks.elements import Elements
from fuseline.passes.masks.integers import Unknown
from fuseline.passes.rewrite import NoMatch, Replace, Rewrite, failed
from fuseline.passes.wording import called, maker


@dataclass(frozen=True)
class RaiseLatentAttention(Rewrite[Attention], root=Attention, pattern="mla"):
    """Attention whose keys and values are a product of one latent, to attention over the latent.

    A key may have a part that all heads have in common (the rotated one), before or behind the
    expanded part. Keys and values may come from one product, a head's rows side by side, or from
    one each. Nothing else may read what is expanded, as it no longer exists.

    Before:
        func @f(%q: f32[B, 4, S, 10], %c: f32[B, 1, T, 16], %r: f32[B, 1, T, 4],
                %w: f32[44, 16] = param "kv_b") {
          %kv = linear %c, %w
          %heads = reshape %kv {shape = (B, T, 4, 11)}
          %t = permute %heads {dims = (0, 2, 1, 3)}
          %n = slice %t {axis = 3, stop = 6}
          %v = slice %t {axis = 3, start = 6, stop = 11}
          %each = expand %r {shape = (B, 4, T, 4)}
          %k = concat [%n, %each] {axis = 3}
          %y = attention %q, %k, %v {scale = 0.3}
          return %y
        }
    After:
        func @f(%q: f32[B, 4, S, 10], %c: f32[B, 1, T, 16], %r: f32[B, 1, T, 4],
                %w: f32[44, 16] = param "kv_b") {
          %y = latent_attention %q, %c, %w, %r {key = 6, value = 5, scale = 0.3}
          return %y
        }
    """

    reorders: ClassVar[bool] = True

    def rewrite(self, op: Attention, func: Func) -> Replace | NoMatch | None:
        try:
            found = expanded(op, Elements(func))
        except Unknown:
            return None  # a size that index arithmetic cannot hold: not a product's columns
        if not isinstance(found, Expanded):
            return found
        if not is_latent(found, func):
            return None
        types = {op.q.dtype, op.k.dtype, op.v.dtype}
        missed = failed(
            (_EXPANDED,),
            (_FITS, lambda: unfit(types, found)),
            (_ALONE, lambda: _read_elsewhere(op, found, func)),
        )
        if missed is not None:
            return missed if found.shared or is_compressed(found.latent) else None
        return _raised(op, found)


_EXPANDED = "keys and values are expansions of one latent"
_FITS = "the weights that expand it lie as the kernel has them"
_ALONE = "nothing else reads them"


def _products(found: Expanded) -> list[Linear]:
    return list(dict.fromkeys([found.keys.product, found.values.product]))


def is_latent(found: Expanded, func: Func) -> bool:
    """Whether what is expanded is a latent, not the x of ordinary keys and values.

    A latent is narrower than what it expands to. Where no part of a key bypasses the expansion,
    ordinary projections look alike: there, no other product may read it.
    """
    products = _products(found)
    rows = [p.y.shape[-1] for p in products]
    width = products[0].x.shape[-1]
    wide = sum(r for r in rows if isinstance(r, int))
    if not isinstance(width, int) or width >= wide:
        return False
    if found.shared is not None:
        return True
    stack, others = [_root(products[0].x)], list[Op]()
    while stack:
        for user in func.users(stack.pop()):
            if user.has(Trait.VIEW):
                stack += user.results
            elif isinstance(user, (Linear, Matmul)) and user not in products:
                others.append(user)
    return not others


def is_compressed(latent: Value) -> bool:
    """Whether a latent is what another product made narrower, with its norm or kept in a cache.

    What keys and values are made of otherwise, such as an encoder's states, is no latent.
    """
    value = _root(latent)
    if isinstance(value.owner, Read):
        return True
    if isinstance(value.owner, (RmsNorm, LayerNorm)):
        value = value.owner.x
    product = product_behind(value)
    wide = None if product is None else product.operands[0].shape[-1]
    return isinstance(wide, int) and isinstance(latent.shape[-1], int) and latent.shape[-1] < wide


def _root(value: Value) -> Value:
    while value.owner is not None and value.owner.has(Trait.VIEW):
        value = value.owner.operands[0]
    return value


def unfit(types: set[DType], found: Expanded) -> str:
    """Why `LatentAttention` cannot hold a form of values of these types; empty where it can."""
    for product in _products(found):
        if product.bias is not None:
            return f"the expansion of the latent has a bias {called(product.bias)}"
        origin = product.weight.origin
        if product.weight.owner is not None or origin is None:
            return f"the weight that expands the latent comes from {maker(product.weight)}"
    common = found.shared
    types = types | {p.weight.dtype for p in _products(found)}
    types |= {found.latent.dtype} if common is None else {found.latent.dtype, common.value.dtype}
    if len(types) > 1:
        return f"q, latent, weights and keys are of types {', '.join(sorted(map(str, types)))}"
    return _unfit_rows(found)


def _unfit_rows(found: Expanded) -> str:
    """Why the rows of the weights are not laid out as the op has them; empty where they are."""
    k, v = found.keys, found.values
    if k.product is not v.product:
        whole = all(p.rows == p.width and p.start == 0 for p in (k, v))
        return "" if whole else _layout(found)
    rows = k.width + v.width
    aligned = (k.rows, v.rows, k.start, v.start) == (rows, rows, 0, k.width)
    return "" if aligned else _layout(found)


def _layout(found: Expanded) -> str:
    k, v = found.keys, found.values
    return (
        f"head h takes its {k.width} key rows from {k.rows} * h + {k.start} on and its {v.width} "
        f"value rows from {v.rows} * h + {v.start} on: not side by side, keys first"
    )


def _read_elsewhere(op: Attention, found: Expanded, func: Func) -> str:
    """Who else reads what is expanded; empty where only this attention does."""
    stack = [p.y for p in _products(found)]
    while stack:
        value = stack.pop()
        if func.is_returned(value):
            return f"the expanded keys and values ({called(value)}) are returned"
        for user in func.users(value):
            if user.has(Trait.VIEW) or isinstance(user, Concat):
                stack += user.results
            elif user is not op:
                return f"the expanded keys and values are read by {user.name} too"
    return ""


def _raised(op: Attention, found: Expanded) -> Replace:
    keys, values, common = found.keys, found.values, found.shared
    made = LatentAttention(
        _queries(op.q, found),
        found.latent,
        keys.product.weight,
        None if common is None else common.value,
        op.mask,
        op.positions,
        op.sinks,
        None if keys.product is values.product else values.product.weight,
        key=keys.width,
        value=values.width,
        **op.attributes,
    )
    return Replace(
        {op.y: made.y}, held=(_EXPANDED, _FITS, _ALONE), details=latent_details(Latents.of(made))
    )


def _queries(q: Value, found: Expanded) -> Value:
    """The queries with the part that meets the expanded keys first."""
    if not isinstance(found.parts[0], Shared):
        return q
    width, axis = found.parts[0].width, 3
    back = Slice(q, axis=axis, start=width, stop=q.shape[-1]).y
    return Concat((back, Slice(q, axis=axis, start=0, stop=width).y), axis=axis).y
