"""The numbers rule of funcs: how far from float64 one may be that came from another.

No further than `tolerance` times as far as the func before, plus one unit in the last place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fuseline.debug.gaps import SAME, gap
from fuseline.debug.oracle import oracle
from fuseline.debug.seeded import added_argument, is_buffer, own_argument
from fuseline.ir.core import Func
from fuseline.ir.evaluate import Argument, bind, evaluate

Runs = Callable[[list[Argument]], Sequence[Tensor]]


@dataclass(frozen=True)
class Found:
    """The error of the result that is worst, what it was before, and the most that it may be."""

    error: float
    before: float
    allowed: float

    @property
    def good(self) -> bool:
        """Whether the rule holds."""
        return self.error <= self.allowed

    @property
    def excess(self) -> float:
        """How many times as large as allowed the error is."""
        return self.error / self.allowed if self.allowed > 0 else float(self.error > 0)

    def __str__(self) -> str:
        how = "within" if self.good else "outside"
        return f"error {self.error:.3g}, {how} {self.allowed:.3g}; before {self.before:.3g}"


class Measure:
    """What a func gives for some arguments, to measure by it what became of that func.

    Args:
        func: before all passes; its references say what is right.
        arguments: of it; they are left as they are.
        tolerance: the option of that name.

    """

    def __init__(self, func: Func, arguments: Sequence[Argument], tolerance: float) -> None:
        self.func = func
        self.arguments = arguments
        self.tolerance = tolerance
        self.expected = self.outcome(lambda given: evaluate(func, given))
        with torch.no_grad():
            self.exact: list[Tensor] = oracle(self._exactly, *arguments)

    def outcome(self, run: Runs, *, of: Func | None = None) -> list[Tensor]:
        """The results of something that takes the func's arguments, and what the buffers hold then.

        Args:
            run: takes copies of the arguments.
            of: what became of the func, where that is what runs; it may have arguments of its own.

        """
        return _outcome(self.func, of or self.func, self.arguments, run)

    def of_references(self, after: Func) -> Found:
        """The error of what passes made of the func, by the references of its ops."""
        return self._found(self.outcome(lambda given: evaluate(after, given), of=after), after)

    def of_program(self, program: Runs, after: Func) -> Found:
        """The error of a program that was compiled from ``after``, and is called as the func is."""
        return self._found(outcome_of_program(self.func, self.arguments, program), after)

    def _found(self, outcome: Sequence[Tensor], after: Func) -> Found:
        """Buffers that a state of the program's own stands in for are not looked at."""
        own = [a for a in after.args if a.origin is not None and a.origin.kind == "state"]
        count = len(self.func.returns) if own else len(self.exact)
        tensors = zip(outcome[:count], self.expected[:count], self.exact[:count], strict=True)
        gaps = [gap(*three) for three in tensors]
        worst = max(gaps, key=lambda each: each.share(self.tolerance), default=SAME)
        size = worst.size or 1.0
        allowed = worst.allowed(self.tolerance)
        return Found(worst.own / size, worst.eager / size, allowed / size)

    def _exactly(self, *arguments: Argument) -> list[Tensor]:
        return _outcome(self.func, self.func, arguments, lambda given: evaluate(self.func, given))


def outcome_of_program(func: Func, arguments: Sequence[Argument], program: Runs) -> list[Tensor]:
    """What a compiled program gives for copies of a func's arguments, and leaves in buffers."""
    params = [i for i, a in enumerate(func.args) if a.origin and a.origin.kind == "param"]

    def run(given: list[Argument]) -> Sequence[Tensor]:
        for number in params:  # only parameters are packed, and only if nothing else holds them
            given[number] = _parameter(given[number])
        return program(given)

    return _outcome(func, func, arguments, run)


def _parameter(value: Argument) -> Tensor:
    assert isinstance(value, Tensor), "a parameter is a tensor"
    return nn.Parameter(value.clone(), requires_grad=False)


def _outcome(func: Func, after: Func, arguments: Sequence[Argument], run: Runs) -> list[Tensor]:
    """See `Measure.outcome`."""
    own = [own_argument(a, arg) for a, arg in zip(arguments, after.args, strict=False)]
    added = after.args[len(func.args) :]
    if added:
        binding = bind(func, arguments)
        own += [added_argument(arg, binding) for arg in added]
    with torch.no_grad():
        found = list(run(own))
    buffers = [i for i, arg in enumerate(func.args) if is_buffer(arg)]
    return [*found, *(value for i in buffers if isinstance(value := own[i], Tensor))]


__all__ = ["Found", "Measure", "outcome_of_program"]
