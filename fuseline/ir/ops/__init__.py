"""The declared ops, one module per family; importing this package registers all of them."""

from fuseline.ir.ops import (
    buffer,
    call,
    create,
    experts,
    fused,
    index,
    latent,
    matmul,
    mla_projection,
    pointwise,
    raised,
    reduce,
    view,
)

__all__ = [
    "buffer",
    "call",
    "create",
    "experts",
    "fused",
    "index",
    "latent",
    "matmul",
    "mla_projection",
    "pointwise",
    "raised",
    "reduce",
    "view",
]
