"""Operators: what their schemas say about memory, and how they are dispatched."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias, cast

import torch

Overload: TypeAlias = Any
"""An ``OpOverload``; torch gives it no useful static type."""

_lib = cast("Any", torch)


@dataclass(frozen=True)
class Schema:
    """What an overload's schema says about memory.

    Attributes:
        names: the parameters in order.
        written: parameters that the call writes.
        views: for each result, the parameter whose memory it shares; None for a fresh one.
        composite: whether torch defines the op by a composition of others.
    """

    names: tuple[str, ...]
    written: tuple[str, ...]
    views: tuple[str | None, ...]
    composite: bool
    fresh: bool

    @property
    def aliases(self) -> bool:
        """Whether a result may share memory with an argument, or an argument is written."""
        return not self.fresh


@lru_cache(maxsize=4096)
def schema_of(overload: Overload) -> Schema:
    """The memory effects of an overload."""
    schema = overload._schema
    arguments, results = schema.arguments, schema.returns
    written = tuple(a.name for a in arguments if a.alias_info and a.alias_info.is_write)
    fresh = not any(a.alias_info for a in arguments)
    views = tuple(_source_of(r, arguments) for r in results)
    composite = overload.namespace != "prim" and _lib._C._dispatch_has_kernel_for_dispatch_key(
        overload.name(), "CompositeImplicitAutograd"
    )
    return Schema(tuple(a.name for a in arguments), written, views, composite, fresh)


def _source_of(result: Any, arguments: Any) -> str | None:
    info = result.alias_info
    if info is None:
        return None
    # Of a list of views (``Tensor(a)[]``) torch tells nothing but that the source is a wildcard.
    sets = set(info.before_set) | set(info.after_set) or {"*"}
    for argument in arguments:
        other = argument.alias_info
        if other and sets & (set(other.before_set) | set(other.after_set)):
            return str(argument.name)
    return None


def functional_overload(overload: Overload) -> Overload | None:
    """The overload that computes what an in-place one writes: ``add.Tensor`` of ``add_.Tensor``."""
    name = overload.overloadpacket.__name__
    if not name.endswith("_") or name.endswith("__"):
        return None
    library = getattr(torch.ops, overload.namespace)
    packet = getattr(library, name[:-1], None)
    found = getattr(packet, overload._overloadname, None)
    if found is None or len(found._schema.arguments) != len(overload._schema.arguments):
        return None
    return found


def is_overload(value: object) -> bool:
    """Whether a value is an operator overload (``torch.ops.aten.add.Tensor``)."""
    from torch._ops import OpOverload

    return isinstance(value, OpOverload)


def is_random(overload: Overload) -> bool:
    """Whether an overload reads the random number generator."""
    return torch.Tag.nondeterministic_seeded in overload.tags


@lru_cache(maxsize=16)
def default_norm_eps(dtype: torch.dtype) -> float:
    """The epsilon of ``F.rms_norm`` where none is given, found by asking it.

    torch documents the one of the input's type, and uses float32's for narrow types since it
    computes those in float32.
    """
    probe = 2.0**-10
    found = float(torch.nn.functional.rms_norm(torch.full((1,), probe, dtype=dtype), (1,)))
    candidates = (torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    return min(candidates, key=lambda eps: abs(found - probe / (probe**2 + eps) ** 0.5))


def below_autograd() -> AbstractContextManager[object]:
    """Run with autograd's dispatch keys off, so that dispatch modes see composite ops whole."""
    return cast("AbstractContextManager[object]", _lib._C._AutoDispatchBelowAutograd())


def dispatching(handler: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> Any:
    """A context in which every ATen call goes to ``handler(overload, args, kwargs)``."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return handler(func, args, kwargs or {})

    return Mode()
