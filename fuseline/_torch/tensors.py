"""What tensors and modules hold: memory, and hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

_lib = cast("Any", torch)


def storage_of(tensor: Tensor) -> int:
    """A number that tensors share exactly when they share storage."""
    return int(cast("Any", tensor.untyped_storage())._cdata)


def storage_holders(tensor: Tensor) -> int:
    """How many tensors hold the memory of this one, itself included; 1 where torch cannot say.

    Views, ``detach()``, NumPy arrays and a ``state_dict`` that is still held count; a second name
    for the same tensor object does not.
    """
    count = getattr(_lib._C, "_storage_Use_Count", None)
    if count is None:
        return 1
    storage = cast("Any", tensor.untyped_storage())  # holds it too while we ask
    return int(count(storage._cdata)) - 1


def has_hooks(tensor: Tensor) -> bool:
    """Whether hooks were registered on the tensor itself."""
    names = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return any(getattr(tensor, name, None) for name in names)


def hooks_of(module: torch.nn.Module) -> list[Any]:
    """The functions that run before and after a module's ``forward``."""
    held = cast("Any", module)
    return [*held._forward_pre_hooks.values(), *held._forward_hooks.values()]


def _empty_strided(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype)


empty_strided: Callable[[Sequence[int], Sequence[int], torch.dtype], Tensor] = getattr(
    getattr(_lib._C._dynamo, "guards", None), "_empty_strided_cpu", _empty_strided
)
"""Uninitialised memory on the CPU: ``torch.empty_strided``, in half its time where torch can."""
