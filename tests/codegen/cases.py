"""Cases that the tests of every backend run: IR text, inputs, and how close results must be.

CASES = Cases()

@CASES
@pytest.mark.parametrize("dtype", FLOATS)
def every_unary_op(dtype: str) -> Iterator[Case]:
    yield Case("func @f(...) ...", [tensor])

@pytest.mark.parametrize("case", CASES)      # in the tests of a backend
def test_cases(case: Make) -> None: ...
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import pytest
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """A func or a body of a region, and its inputs.

    Attributes:
        text: the IR.
        tensors: what it is called with.
        exact: whether results are those of the reference bit for bit.
        ulps: else units in the last place that they may differ by,
        atol: and this much besides.
        ops: the ops that are launched, where that is part of the case.
    """

    text: str
    tensors: Sequence[Tensor]
    exact: bool = False
    ulps: float = 4.0
    atol: float = 0.0
    ops: Sequence[str] | None = None


Make: TypeAlias = Callable[[], Iterator[Case]]


class Check(Protocol):
    """Holds what a backend makes of a text to its reference."""

    def __call__(
        self,
        text: str,
        tensors: Sequence[Tensor],
        /,
        *,
        exact: bool,
        ulps: float,
        atol: float,
        ops: Sequence[str] | None,
    ) -> object:
        """Run it and compare."""
        ...


def check_cases(make: Make, check: Check) -> None:
    """Run the cases that a function yields; there is at least one."""
    cases = list(make())
    assert cases
    for each in cases:
        check(
            each.text,
            each.tensors,
            exact=each.exact,
            ulps=each.ulps,
            atol=each.atol,
            ops=each.ops,
        )


class NumbersRule(Protocol):
    """Holds what a backend makes of a text to the numbers rule."""

    def __call__(
        self, text: str, arguments: Sequence[Tensor], /, *, ops: Sequence[str] | None
    ) -> object:
        """Run it and compare."""
        ...


def check_numbers(make: Make, check: NumbersRule) -> None:
    """Run the cases that a function yields by the numbers rule, which needs no bounds of theirs."""
    for each in make():
        assert (each.exact, each.ulps, each.atol) == (False, 4.0, 0.0)
        check(each.text, each.tensors, ops=each.ops)


class Cases(list[Any]):
    """Functions that yield cases, with each of the values that they are parametrised by."""

    def __call__(self, function: Callable[..., Iterator[Case]]) -> Callable[..., Iterator[Case]]:
        """Add a function, once for each combination."""
        marks: list[Any] = getattr(function, "pytestmark", [])
        for combination in itertools.product(*(_values(*mark.args) for mark in marks)):
            given: dict[str, Any] = {}
            ids, own = list[str](), list[Any]()
            for names, label, more in combination:
                given |= names
                ids.append(label)
                own += more
            label = f"[{'-'.join(ids)}]" if ids else ""
            made = functools.partial(function, **given)
            self.append(pytest.param(made, id=f"{function.__name__}{label}", marks=own))
        return function


def _values(names: Any, values: Any) -> list[tuple[dict[str, Any], str, Any]]:
    """What each value of a `parametrize` gives to which names, how it is called, and its marks."""
    found: list[tuple[dict[str, Any], str, Any]] = []
    split = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
    for value in values:
        marks: Any = getattr(value, "marks", None)  # of a pytest.param
        if marks is not None:
            value = value.values if len(split) > 1 else value.values[0]
        given: Any = (value,) if len(split) == 1 else value
        label = "-".join(str(v) for v in given)
        found.append((dict(zip(split, given, strict=True)), label, marks or ()))
    return found


__all__ = ["Case", "Cases", "Check", "Make", "check_cases", "check_numbers"]
