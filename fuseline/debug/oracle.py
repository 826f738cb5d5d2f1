"""The float64 oracle: a program evaluated with every floating type widened to float64.

``model.double()`` is not enough, because model code casts to float32 inside (norms, softmax,
routers). Here every ATen call is seen, and each floating type in it is replaced by float64.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn

from fuseline import _torch

_NARROW = frozenset({torch.float32, torch.bfloat16, torch.float16})


def oracle(program: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a program would return if it rounded nothing: its outputs, in float64.

    Args:
        program: a module, which is copied and left as it is, or a function of tensors.
        args: its arguments; floating tensors in them, also inside containers, are widened.
        kwargs: the same by name.

    Returns:
        The program's outputs, floating tensors in float64, integers and booleans as they come.
    """
    if isinstance(program, nn.Module):
        program = copy.deepcopy(program).double()
    wide_args, wide_kwargs = map_tensors(widened, args), map_tensors(widened, kwargs)
    with torch.no_grad(), widely():
        return program(*wide_args, **wide_kwargs)


def widely() -> AbstractContextManager[object]:
    """A context in which every ATen call has float64 in place of each narrower floating type."""
    return cast("AbstractContextManager[object]", _torch.dispatching(_widely))


def widened(tensor: Tensor) -> Tensor:
    """A floating tensor in float64; any other as it is."""
    return tensor.double() if tensor.dtype in _NARROW else tensor


def relative_error(found: object, expected: object) -> float:
    """The norm of the difference of all floating tensors, over the norm of those expected.

    0 where both are the same and inf where one of them is not finite at another's place. Tensors of
    other types must be equal, or the error is inf.

    Raises:
        ValueError: for another number of tensors, or other shapes.
    """
    pairs = list(zip(tensors(found), tensors(expected), strict=True))
    difference = total = 0.0
    for ours, theirs in pairs:
        if ours.shape != theirs.shape:
            raise ValueError(f"shapes differ: {tuple(ours.shape)} and {tuple(theirs.shape)}")
        if not theirs.is_floating_point():
            if not torch.equal(ours, theirs):
                return math.inf
            continue
        gap, size = _squares(ours.detach().double(), theirs.detach().double())
        difference, total = difference + gap, total + size
    if difference == 0:
        return 0.0
    return math.sqrt(difference / total) if total > 0 else math.inf


def tensors(value: object) -> Iterator[Tensor]:
    """The tensors in a nest of containers, in order; a dataclass counts by its fields."""
    match value:
        case Tensor():
            yield value
        case Mapping():
            for item in cast("Mapping[Any, object]", value).values():
                yield from tensors(item)
        case list() | tuple():
            for item in cast("list[object]", value):
                yield from tensors(item)
        case _ if dataclasses.is_dataclass(value):
            for item in dataclasses.fields(value):
                yield from tensors(getattr(value, item.name))
        case _:
            return


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same nest of dicts, lists and tuples with each tensor replaced."""
    match value:
        case Tensor():
            return function(value)
        case dict():
            items = cast("dict[Any, Any]", value).items()
            return {key: map_tensors(function, item) for key, item in items}
        case list():
            return [map_tensors(function, item) for item in cast("list[Any]", value)]
        case tuple():
            return tuple(map_tensors(function, item) for item in cast("tuple[Any, ...]", value))
        case _:
            return value


def _squares(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Squared norms of the difference and of `theirs`; equal infinities and NaNs do not differ."""
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    gap = torch.where(same, 0.0, ours - theirs).nan_to_num(nan=math.inf)
    size = torch.where(theirs.isfinite(), theirs, 0.0)
    return float(gap.square().sum()), float(size.square().sum())


def _widely(overload: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One ATen call with float64 in place of every narrower floating type."""
    args, kwargs = _types_widened(args), _types_widened(kwargs)
    without_type = str(overload) == "aten.full.default" and kwargs.get("dtype") is None
    if without_type and isinstance(args[1], float):  # it would have torch's default, a narrow one
        kwargs = {**kwargs, "dtype": torch.float64}
    if overload._schema.is_mutable:  # what is written must stay the tensor that it is
        return overload(*args, **kwargs)
    run: Any = _SUBSTITUTES.get(str(overload), overload)
    out = run(*map_tensors(widened, args), **map_tensors(widened, kwargs))
    return map_tensors(widened, out)


def _grouped_mm(rows: Tensor, weights: Tensor, offsets: Tensor | None, *_: object) -> Tensor:
    """``aten._grouped_mm`` of rows ``[T, K]`` by weights ``[G, K, N]`` in float64."""
    if offsets is None or rows.dim() != 2 or weights.dim() != 3:
        raise NotImplementedError(f"grouped product of {rows.shape} and {weights.shape}")
    out = rows.new_zeros(rows.shape[0], weights.shape[2])
    start = 0
    for group, end in enumerate(int(o) for o in offsets):
        out[start:end] = rows[start:end] @ weights[group]
        start = end
    return out


_SUBSTITUTES: dict[str, Callable[..., Any]] = {"aten._grouped_mm.default": _grouped_mm}
"""What stands in for an overload that does not take float64."""


def _types_widened(value: Any) -> Any:
    match value:
        case torch.dtype():
            return torch.float64 if value in _NARROW else value
        case dict():
            return {
                key: _types_widened(item) for key, item in cast("dict[Any, Any]", value).items()
            }
        case list():
            return [_types_widened(item) for item in cast("list[Any]", value)]
        case tuple():
            return tuple(_types_widened(item) for item in cast("tuple[Any, ...]", value))
        case _:
            return value
