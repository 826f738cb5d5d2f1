"""Latent caches that programs keep in the place of a model's own caches of keys and values.

A latent cache belongs to the tensor whose place it takes, and all programs that are compiled for
that tensor share it: a prefill writes what the steps behind it read. What one program keeps as
latents no other may keep as keys, so programs that cannot are refused, whichever comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fuseline import errors
from fuseline.frontend.captured import Argument
from fuseline.frontend.execute import Compiled
from fuseline.ir.core import Func, Value
from fuseline.ir.types import BufferType, IntType
from fuseline.passes.cache_latents import STATE

_LATENTS = "_fuseline_latents"
_KEYS = "_fuseline_keys"


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
        self._states = [(place[s.origin.name], s) for s in states if s.origin is not None]
        owners = {index for index, _ in self._states}
        own = (*func.args[: len(func.args) - len(states)],)
        users = {arg: func.users(arg) for arg in own}
        self._plain = [
            (i, arg)
            for i, arg in enumerate(own)
            if i not in owners and _may_be_cache(arg) and users[arg]
        ]
        self._written = {i for i, arg in self._plain if isinstance(arg.type, BufferType)}

    def __call__(self, arguments: Sequence[Argument]) -> Sequence[Tensor]:
        """Call the program.

        Raises:
            InputError: FL0906, another program keeps one of the caches in another form.
        """
        for index, arg in self._plain:
            cache: Any = arguments[index]
            if hasattr(cache, _LATENTS):
                raise errors.TWO_FORMS_OF_CACHE.error(
                    _name(arg),
                    found="keys and values here, where another program keeps their latents",
                    expected="a latent in every program; `report()` tells why it is not",
                )
            if index in self._written and not hasattr(cache, _KEYS):
                setattr(cache, _KEYS, True)
        return self._run([*arguments, *(self._state(arguments[i], s) for i, s in self._states)])

    @staticmethod
    def _state(cache: Any, state: Value) -> Tensor:
        if hasattr(cache, _KEYS):
            raise errors.TWO_FORMS_OF_CACHE.error(
                state.hint,
                found="a latent here, where another program has written keys and values",
                expected="a latent in every program; `report()` tells why it is not",
            )
        kept: dict[str, Tensor] = getattr(cache, _LATENTS, {})
        if state.hint not in kept:
            shape = [int(d) for d in state.shape]
            kept[state.hint] = torch.zeros(shape, dtype=state.dtype.torch)
            setattr(cache, _LATENTS, kept)
        return kept[state.hint]


def _kind(arg: Value) -> str:
    return arg.origin.kind if arg.origin is not None else "input"


def _may_be_cache(arg: Value) -> bool:
    """Whether an argument may be a cache: state of four dims."""
    whole = isinstance(arg.type, IntType)
    return not whole and arg.tensor.rank == 4 and _kind(arg) in ("input", "buffer")


def _name(arg: Value) -> str:
    return (arg.origin.name if arg.origin is not None else "") or arg.hint
