"""Whether a profiler of torch watches this thread, and ranges that it shows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, cast

import torch

_lib = cast("Any", torch)

profiling: Callable[[], bool] = _lib._C._autograd._profiler_enabled
"""Whether one is active: asked at every call of a program, so it is torch's own function."""


def named_range(name: str) -> AbstractContextManager[object]:
    """What is done within is a range of this name in the profile."""
    fast = getattr(_lib._C._profiler, "_RecordFunctionFast", None)
    made: AbstractContextManager[object] = (
        torch.profiler.record_function(name) if fast is None else fast(name)
    )
    return made


__all__ = ["named_range", "profiling"]
