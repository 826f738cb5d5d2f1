"""Which passes of the compiler's pipeline a program goes through on its way to ONNX.

Those that clean up, raise and fuse. Left out is what is about memory and kernels: writes in place,
weights side by side, regions of element-wise ops.
"""

from __future__ import annotations

from fuseline.ir.core import Func
from fuseline.passes.manager import PassManager, Run
from fuseline.passes.pipeline import default_pipeline

LEFT_OUT = frozenset(
    {
        "restore-mutations",
        "known-sizes",
        "fuse-gated-mlp",
        "lower-gated-mlp",
        "fuse-wide-linear",
        "merge-linears",
        "fuse-linear-add",
        "fuse-cache-write",
        "split-cache-write",
        "merge-rows",
        "lift-numbers",
        "fuse-pointwise",
        "fuse-writes",
        "protect-reads",
    }
)


def simplify(func: Func, disable: tuple[str, ...] = (), *, check: bool = False) -> Run:
    """Clean up, raise and fuse; the func is edited in place."""
    manager = PassManager(default_pipeline(), disable=[*LEFT_OUT, *disable], check=check)
    return manager.run(func)


__all__ = ["LEFT_OUT", "simplify"]
