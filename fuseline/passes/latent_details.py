"""What a report says of attention over a latent: where q comes from, ranks, widths, the cache."""

from __future__ import annotations

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


def latent_details(op: LatentAttention) -> dict[str, str]:
    """The details of one site."""
    latent = op.latent.shape[-1]
    common = 0 if op.shared is None else op.shared.shape[-1]
    each = op.latent.dtype.itemsize
    wide = op.groups * (op.key + common + op.value)
    return {
        "q": _query(op),
        "kv rank": str(latent),
        "heads": f"{op.q.shape[1]} over {op.groups}",
        "widths": f"key {op.key} + {common}, value {op.value}",
        "cache": _cache(op),
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


def query_norm(op: LatentAttention) -> RmsNorm | None:
    """The norm of a latent that q is expanded from; None where there is none."""
    source = _source(product_behind(op.q))
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


def _query(op: LatentAttention) -> str:
    source = _source(product_behind(op.q))
    if source is None:
        return "not from one product"
    norm = source.owner if isinstance(source.owner, RmsNorm) else None
    inner = product_behind(source if norm is None else norm.x)
    if inner is None:
        return "direct"
    return f"low-rank, {source.shape[-1]}" + ("" if norm is not None else ", no norm")


def _cache(op: LatentAttention) -> str:
    value = op.latent
    while isinstance(value.owner, View):
        value = value.owner.x
    match value.owner:
        case Read(buffer):
            return f"latent, in {name_of(buffer)}"
        case Concat() | IndexCopy() | SliceScatter():
            return "latent, a new tensor in each call"
        case _:
            return "none"
