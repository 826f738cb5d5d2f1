"""Latent caches that programs keep in the place of a model's own caches of keys and values.

A latent cache belongs to the tensor whose place it takes, and all programs that are compiled for
that tensor share it: a prefill writes what the steps behind it read. What one program keeps as
latents nobody may write as keys, so whoever comes second is refused: a program that cannot, or code
outside of compiled programs. Zeros that a cache is reset to clear its latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fuseline import errors
from fuseline.frontend.captured import Argument
from fuseline.frontend.execute import Compiled
from fuseline.ir.core import Func, Trait, Value
from fuseline.ir.types import BufferType, IntType
from fuseline.passes.cache_latents import STATE

_LATENTS = "_fuseline_latents"
_KEYS = "_fuseline_keys"


@dataclass
class _Kept:
    """What is kept for one cache: tensors by role, and how often others had written it then."""

    version: int
    tensors: dict[int, Tensor] = field(default_factory=dict[int, Tensor])


class LatentCaches:
    """A program with its latent caches, which it is given behind the arguments of a call.

    Args:
        run: the program.
        func: what it computes.
    """

    def __init__(self, run: Compiled, func: Func) -> None:
        self._run = run
        place = {arg.hint: i for i, arg in enumerate(func.args)}
        states = [arg for arg in func.args if _kind(arg) == STATE]
        self._states: list[tuple[int, int, Value]] = []
        for state in states:
            owner = place[state.origin.name] if state.origin is not None else -1
            role = sum(index == owner for index, _, _ in self._states)
            self._states.append((owner, role, state))
        owners = {index for index, _, _ in self._states}
        self._plain = [
            (i, arg)
            for i, arg in enumerate(func.args)
            if i not in owners and _may_be_cache(arg) and func.users(arg)
        ]
        self._written = {i for i, arg in self._plain if isinstance(arg.type, BufferType)}
        attended = [a for i, a in self._plain if i in self._written and _is_read(func, a)]
        if attended and not self._states:
            names = ", ".join(map(_name, attended))
            errors.NO_LATENTS.warn(func.name, found=f"caches of keys and values only ({names})")

    def __call__(self, arguments: Sequence[Argument]) -> Sequence[Tensor]:
        """Call the program.

        Raises:
            InputError: FL0906, somebody else keeps one of the caches in another form.
        """
        for index, arg in self._plain:
            cache: Any = arguments[index]
            if hasattr(cache, _LATENTS):
                raise _two_forms(
                    _name(arg), "keys and values here, where another program keeps their latents"
                )
            if index in self._written and not hasattr(cache, _KEYS):
                setattr(cache, _KEYS, True)
        own = [_state(arguments[owner], role, state) for owner, role, state in self._states]
        return self._run([*arguments, *own])


def _state(cache: Any, role: int, state: Value) -> Tensor:
    """The tensor that is kept for a cache in one of its roles: latents first, then shared keys."""
    name = state.origin.name if state.origin is not None else state.hint
    if hasattr(cache, _KEYS):
        raise _two_forms(name, "a latent here, where another program has written keys and values")
    kept: _Kept | None = getattr(cache, _LATENTS, None)
    if kept is None:
        if cache._is_view():
            raise _two_forms(name, "a view, which is another tensor in the next call")
        if cache.any():
            raise _two_forms(name, "keys and values that were written before")
        kept = _Kept(_version(cache))
        setattr(cache, _LATENTS, kept)
    if kept.version != _version(cache):
        if cache.any():
            raise _two_forms(name, "keys and values that were written between two calls")
        kept.tensors.clear()
        kept.version = _version(cache)
    shape = tuple(int(d) for d in state.shape)
    found = kept.tensors.setdefault(role, torch.zeros(0))
    if found.numel() == 0:
        found = kept.tensors[role] = torch.zeros(shape, dtype=state.dtype.torch)
    if tuple(found.shape) != shape or found.dtype != state.dtype.torch:
        raise _two_forms(name, f"latents {tuple(found.shape)}, here {state.type}")
    return found


def _two_forms(name: str, found: str) -> Exception:
    return errors.TWO_FORMS_OF_CACHE.error(
        name,
        found=found,
        expected="a latent in every program; `report()` tells why it is not",
    )


def _version(cache: Tensor) -> int:
    """How often a tensor was written in place through torch; unknown for inference tensors."""
    return 0 if cache.is_inference() else cache._version


def _kind(arg: Value) -> str:
    return arg.origin.kind if arg.origin is not None else "input"


def _may_be_cache(arg: Value) -> bool:
    """Whether an argument may be a cache: state of four dims."""
    whole = isinstance(arg.type, IntType)
    return not whole and arg.tensor.rank == 4 and _kind(arg) in ("input", "buffer")


def _is_read(func: Func, arg: Value) -> bool:
    """Whether a program does more to an argument than write it, as one that resets it does."""
    return any(Trait.WRITES not in op.traits for op in func.users(arg))


def _name(arg: Value) -> str:
    return (arg.origin.name if arg.origin is not None else "") or arg.hint
