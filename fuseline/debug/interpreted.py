"""Triton kernels without a GPU: in a process in which Triton interprets them.

Triton's interpreter is a choice of the whole process, made by ``TRITON_INTERPRET=1`` before Triton
is imported. Its bfloat16 is wrong (3.6 to 3.9): casts cut off instead of rounding, and products
multiply the raw bits. `mend` puts both right, so that bfloat16 is held to the same rule as the
other types.
"""

from __future__ import annotations

import importlib
import linecache
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor


def mend() -> None:
    """Put right what Triton's interpreter does wrong."""
    _mend_bfloat16()
    _mend_bounds()


def _mend_bfloat16() -> None:
    """Make casts round to nearest even, and products multiply numbers."""
    own: Any = importlib.import_module("triton.runtime.interpreter")
    tl: Any = importlib.import_module("triton.language")
    convert, dot = own._convert_float, own.InterpreterBuilder.create_dot

    def converted(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) == (tl.float32, tl.bfloat16):
            rounded = cast("Any", torch).from_numpy(np.ascontiguousarray(data)).to(torch.bfloat16)
            return rounded.view(torch.int16).numpy().view(np.uint16).reshape(data.shape)
        if (source, target) == (tl.bfloat16, tl.float32):
            wide = data.view(np.uint16).astype(np.uint32) << 16
            return wide.view(np.float32)
        return convert(data, source, target, mode)

    def product(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        wide = [
            self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)
        ]
        return dot(self, *wide, d, *rest)

    own._convert_float = converted
    own.InterpreterBuilder.create_dot = product


def _mend_bounds() -> None:
    """Let loops have bounds that are known at run time."""
    own: Any = importlib.import_module("triton.runtime.interpreter")
    patch = own._patch_lang_tensor

    def index(tensor: Any) -> int:
        return int(tensor.handle.data.item())

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", index)

    own._patch_lang_tensor = patched


def launch(
    symbol: str, source: str, grid: Sequence[int], arguments: Sequence[Tensor | int]
) -> None:
    """Run a kernel on tensors of the CPU, in place."""
    if all(grid):
        function(symbol, source)[tuple(grid)](*arguments)


@lru_cache(maxsize=64)
def function(symbol: str, source: str) -> Any:
    """The function of this name that a source defines; Triton reads the source as a file."""
    file = f"{symbol}.py"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names: dict[str, Any] = {"__name__": symbol, "__file__": file}
    exec(compile(source, file, "exec"), names)
    return names[symbol]


__all__ = ["function", "launch", "mend"]
