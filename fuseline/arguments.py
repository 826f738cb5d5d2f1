"""What is done to the arguments of a call before a program takes them."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import TypeGuard, cast

import torch
from torch import Tensor

from fuseline import errors
from fuseline.clock import Clock
from fuseline.frontend.captured import Argument
from fuseline.frontend.execute import Compiled
from fuseline.ir.core import Func, Origin
from fuseline.ir.types import IntType, symbol
from fuseline.runtime import packing
from fuseline.runtime.executor import Program

_GREATEST = 2**63 - 1


class Numbered:
    """A program that reads some integers of a call from memory: see `LiftNumbers`.

    Args:
        run: the program.
        numbers: the arguments that are integers to the caller, and tensors to the program.
        counts: the arguments that are both: the program takes the tensors behind all others.
        device: where the tensors are.

    """

    def __init__(
        self,
        run: Compiled,
        numbers: Mapping[int, Origin],
        counts: Sequence[int],
        device: torch.device,
    ) -> None:
        self.run, self.numbers, self.counts, self.device = run, numbers, counts, device

    @staticmethod
    def of(run: Compiled, func: Func, device: torch.device) -> Compiled:
        """A program of a func, as its callers call it."""
        numbers: dict[int, Origin] = {}
        counts: list[int] = []
        sizes = {a.type.value: i for i, a in enumerate(func.args) if isinstance(a.type, IntType)}
        for i, arg in enumerate(func.args):
            if arg.origin and arg.origin.kind == "number":
                numbers[i] = arg.origin
            elif arg.origin and arg.origin.kind == "count":
                counts.append(sizes[symbol(arg.origin.name)])
        return Numbered(run, numbers, counts, device) if numbers or counts else run

    def __call__(self, arguments: Sequence[Argument]) -> Sequence[Tensor]:
        """Run the program."""
        given = list(arguments)
        for i, origin in self.numbers.items():
            if i < len(given):
                given[i] = self._in_memory(self._checked(given[i], origin))
        counts = [given[i] if i < len(given) else 0 for i in self.counts]
        given += [self._in_memory(n if _is_number(n) else 0) for n in counts]  # refused as a size
        return self.run(given)

    def _checked(self, number: object, origin: Origin) -> int:
        low, high = origin.limits.lo, origin.limits.hi
        high = _GREATEST if high is None else high
        if not isinstance(number, int) or not low <= number <= high:
            expected = f"an integer in {origin.limits}"
            raise errors.ARGUMENT_MISMATCH.error(origin.name, found=str(number), expected=expected)
        return number

    def _in_memory(self, number: int) -> Tensor:
        return torch.full((), number, dtype=torch.int64, device=self.device)


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and 0 <= value <= _GREATEST


class Packed:
    """A program whose merged products need weights that lie one behind the other.

    They are packed by the first call; assigning new memory to a parameter undoes that, so it is
    looked at before every call, and mended. Where others hold that memory too it cannot be: then
    the program runs op by op.
    """

    def __init__(
        self, program: Program, run: Compiled, plain: Compiled, seconds: dict[str, float]
    ) -> None:
        self.program = program
        self.run = run
        self.plain = plain
        self.seconds = seconds
        self.groups = program.plan.packed
        self.numbers = array("i", (i for group in self.groups for i in group)).tobytes()
        self.places = b""
        self.refused = b""

    def __call__(self, arguments: Sequence[Argument]) -> Sequence[Tensor]:
        """Run the program."""
        given = arguments if isinstance(arguments, list | tuple) else list(arguments)
        try:
            found = self._places(given)
        except TypeError:  # what is no tensor, or not there: the program says it better
            self.program.check(given)
            raise
        if found != self.places and (found == self.refused or not self._pack(given)):
            self.refused = found
            self.program.check(given)
            return self.plain(given)
        return self.run(given)

    def _places(self, arguments: list[Argument] | tuple[Argument, ...]) -> bytes:
        return self.program.addresses(arguments, self.numbers)

    def _pack(self, arguments: list[Argument] | tuple[Argument, ...]) -> bool:
        """Bring the parameters to where the program reads them; whether that could be done."""
        clock = Clock(self.seconds)
        with clock("pack weights"):
            groups = [[cast("Tensor", arguments[i]) for i in group] for group in self.groups]
            outcomes = packing.pack(groups)
        for group, reason in zip(groups, outcomes, strict=True):
            if reason:
                shapes = ", ".join(str(list(p.shape)) for p in group)
                errors.CANNOT_PACK.warn(f"parameters {shapes}", found=reason)
                return False
        self.places = self._places(arguments)
        return True


__all__ = ["Numbered", "Packed"]
