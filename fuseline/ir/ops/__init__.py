"""The declared ops, one module per family; importing this package registers all of them."""

from fuseline.ir.ops import (
    adapters,
    buffer,
    call,
    create,
    experts,
    fused,
    index,
    latent,
    matmul,
    merged_rows,
    mla_projection,
    norm_linear,
    pointwise,
    raised,
    reduce,
    view,
)

__all__ = [
    "adapters",
    "buffer",
    "call",
    "create",
    "experts",
    "fused",
    "index",
    "latent",
    "matmul",
    "merged_rows",
    "mla_projection",
    "norm_linear",
    "pointwise",
    "raised",
    "reduce",
    "view",
]
