"""New memory of the form of a tensor, and what is expanded."""

from __future__ import annotations

import torch
from torch import Tensor


def like(tensor: Tensor) -> Tensor:
    """New memory with the shape and the strides of a tensor; nothing is copied.

    Dims that the tensor only repeats (a stride of 0) repeat there, too.
    """
    narrow = once(tensor)
    fresh = torch.empty_strided(
        narrow.shape, narrow.stride(), dtype=tensor.dtype, device=tensor.device
    )
    return fresh.as_strided(tensor.shape, tensor.stride())


def copy_into(target: Tensor, source: Tensor) -> None:
    """Copy a tensor to memory of the same form."""
    once(target).copy_(once(source))


def copy_over(target: Tensor, source: Tensor) -> None:
    """Copy a tensor to memory of its shape, the dims that the memory only repeats once."""
    for dim, (extent, stride) in enumerate(zip(target.shape, target.stride(), strict=True)):
        if stride == 0 and extent > 1:
            target, source = target.narrow(dim, 0, 1), source.narrow(dim, 0, 1)
    target.copy_(source)


def copy_of(tensor: Tensor) -> Tensor:
    """The same in new memory of the same form."""
    fresh = like(tensor)
    copy_into(fresh, tensor)
    return fresh


def once(tensor: Tensor) -> Tensor:
    """A tensor with each repeated dim once."""
    for dim, (extent, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and extent > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor
