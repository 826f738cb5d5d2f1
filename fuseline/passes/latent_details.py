"""What a report says of attention over a latent: where q comes from, ranks, widths, the cache."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.ir.core import Op, Value
from fuseline.ir.ops.buffer import Read
from fuseline.ir.ops.fused import LinearAdd, MergedLinear
from fuseline.ir.ops.index import IndexCopy, SliceScatter
from fuseline.ir.ops.latent import LatentAttention
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.ops.pointwise import Mul
from fuseline.ir.ops.raised import RmsNorm, Rope
from fuseline.ir.ops.view import Concat, View
from fuseline.passes.constants import is_scalar
from fuseline.passes.wording import name_of

PRODUCTS = (Linear, MergedLinear, LinearAdd)


@dataclass(frozen=True)
class Latents:
    """What one attention is over: ``groups`` key heads that are expanded from a latent.

    Attributes:
        q: ``[B, H, S, key + R]``.
        latent: ``[B, 1, S, L]``, of this step or of a cache.
        shared: ``[B, 1, S, R]``, the part of the keys that all heads have in common.
        groups, key, value: as in `LatentAttention`.
    """

    q: Value
    latent: Value
    shared: Value | None
    groups: int
    key: int
    value: int

    @classmethod
    def of(cls, op: LatentAttention) -> Latents:
        """Those of an op that attends over the latent itself."""
        return cls(op.q, op.latent, op.shared, op.groups, op.key, op.value)


def latent_details(of: Latents) -> dict[str, str]:
    """The details of one site."""
    latent = of.latent.shape[-1]
    common = 0 if of.shared is None else of.shared.shape[-1]
    each = of.latent.dtype.itemsize
    wide = of.groups * (of.key + common + of.value)
    return {
        "q": _query(of.q),
        "kv rank": str(latent),
        "heads": f"{of.q.shape[1]} over {of.groups}",
        "widths": f"key {of.key} + {common}, value {of.value}",
        "cache": _cache(of.latent),
        "cache bytes per token": f"{(latent + common) * each} latent, {wide * each} expanded",
    }


def product_behind(value: Value) -> Op | None:
    """The product whose columns a value is made of, by views, rotation and numbers alone."""
    while True:
        match value.owner:
            case View(x=x) | Rope(x=x):
                value = x
            case Concat(xs=xs):
                found = {product_behind(x) for x in xs}
                return found.pop() if len(found) == 1 else None
            case Mul(lhs, rhs) if is_scalar(lhs) != is_scalar(rhs):
                value = rhs if is_scalar(lhs) else lhs
            case owner:
                return owner if isinstance(owner, PRODUCTS) else None


def query_norm(q: Value) -> RmsNorm | None:
    """The norm of a latent that q is expanded from; None where there is none."""
    source = _source(product_behind(q))
    if source is None or not isinstance(norm := source.owner, RmsNorm):
        return None
    return None if product_behind(norm.x) is None else norm  # else it is the norm of the block


def _source(product: Op | None) -> Value | None:
    """What a product reads, before views."""
    if product is None:
        return None
    value = product.operands[0]
    while isinstance(value.owner, View):
        value = value.owner.x
    return value


def _query(q: Value) -> str:
    source = _source(product_behind(q))
    if source is None:
        return "not from one product"
    norm = source.owner if isinstance(source.owner, RmsNorm) else None
    inner = product_behind(source if norm is None else norm.x)
    if inner is None:
        return "direct"
    return f"low-rank, {source.shape[-1]}" + ("" if norm is not None else ", no norm")


def _cache(latent: Value) -> str:
    while isinstance(latent.owner, View):
        latent = latent.owner.x
    match latent.owner:
        case Read(buffer):
            return f"latent, in {name_of(buffer)}"
        case Concat() | IndexCopy() | SliceScatter():
            return "latent, a new tensor in each call"
        case _:
            return "none"
