"""What is done to the arguments of a call before a program takes them."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from fuseline import errors
from fuseline.clock import Clock
from fuseline.frontend.captured import Argument
from fuseline.frontend.execute import Compiled
from fuseline.ir.core import Origin
from fuseline.runtime import packing
from fuseline.runtime.executor import Program

_GREATEST = 2**63 - 1


class Numbered:
    """A program that reads some integers of a call from memory: see `LiftNumbers`."""

    def __init__(self, run: Compiled, numbers: Mapping[int, Origin], device: torch.device) -> None:
        self.run, self.numbers, self.device = run, numbers, device

    def __call__(self, arguments: Sequence[Argument]) -> Sequence[Tensor]:
        """Run the program."""
        given = list(arguments)
        for i, origin in self.numbers.items():
            if i < len(given):
                given[i] = self._in_memory(given[i], origin)
        return self.run(given)

    def _in_memory(self, number: object, origin: Origin) -> Tensor:
        low, high = origin.limits.lo, origin.limits.hi
        high = _GREATEST if high is None else high
        if not isinstance(number, int) or not low <= number <= high:
            expected = f"an integer in {origin.limits}"
            raise errors.ARGUMENT_MISMATCH.error(origin.name, found=str(number), expected=expected)
        return torch.full((), number, dtype=torch.int64, device=self.device)


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
                errors.CANNOT_PACK.warn(f"parameters {shapes}", found=reason, stacklevel=3)
                return False
        self.places = self._places(arguments)
        return True


__all__ = ["Numbered", "Packed"]
