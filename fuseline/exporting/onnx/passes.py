"""Which passes of the compiler's pipeline a program goes through on its way to ONNX.

Those that clean up, raise and fuse. Left out is what is about memory and kernels: writes in place,
weights side by side, regions of element-wise ops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fuseline.debug.reproducer import pass_failure
from fuseline.ir.core import Func
from fuseline.passes.manager import PassManager
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


def simplified(make: Callable[[], Func], disable: Sequence[str] = ()) -> Func:
    """A func, cleaned up, raised and fused.

    Args:
        make: gives the func; again, if a pass fails, for what replays that.
        disable: names of passes that are left out, too.

    Raises:
        InternalError: a pass failed; the func before it is saved.

    """
    left_out = [*LEFT_OUT, *disable]
    func = make()
    manager = PassManager(default_pipeline(), disable=left_out)
    try:
        manager.run(func)
    except Exception as error:
        raise pass_failure(manager, make(), error, None) from error
    return func


__all__ = ["LEFT_OUT", "simplified"]
