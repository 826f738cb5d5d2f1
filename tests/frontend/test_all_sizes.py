"""Questions about sizes: proven for all of them, or not known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import sympy
import torch
from torch import Tensor, nn

from fuseline.frontend.all_sizes import holds
from fuseline.frontend.export import capture_export

S, B = sympy.Symbol("s", integer=True, positive=True), sympy.Symbol("b", integer=True)


@dataclass(frozen=True)
class Limits:
    """A range as torch gives it."""

    lower: Any
    upper: Any = sympy.oo


SIZE = sympy.Symbol("u")
RANGES = {S: Limits(sympy.Integer(1)), B: Limits(sympy.Integer(0), sympy.Integer(8))}


CONDITIONS: list[tuple[Any, bool]] = [
    (sympy.Eq(S * sympy.Min(88, 88 * S), 88 * S, evaluate=False), True),
    (sympy.Eq(B * sympy.Min(88, 88 * B), 88 * B, evaluate=False), False),
    (sympy.Eq(S * sympy.Max(1, S), S * S, evaluate=False), True),
    (sympy.Ge(S, 1, evaluate=False), True),
    (sympy.Ge(B, 1, evaluate=False), False),
    (sympy.Eq(S, B), False),
    (sympy.Eq(S, 7), False),
    (sympy.Ne(S, 0), True),
    (sympy.Lt(S, 65), False),
    (sympy.Eq(SIZE, SIZE), True),
    (sympy.Ge(SIZE, 0), False),
    (True, True),
    (False, False),
    (3, False),
]


@pytest.mark.parametrize(("condition", "known"), CONDITIONS, ids=str)
def test_conditions(condition: Any, known: bool) -> None:
    assert holds(condition, RANGES) is known


class Halves(nn.Module):
    """Goes one way for lengths that are even."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.shape[0] % 2 == 0 else x - 1


class Asks(nn.Module):
    """Goes on by a function of its length."""

    def __init__(self, function: Callable[[Any], Any], *, also: bool = False) -> None:
        super().__init__()
        self.function = function
        self.also = also

    def forward(self, x: Tensor) -> Tensor:
        if self.also:  # what is proven
            x = x.expand(max(1, x.shape[0]))
        return x * self.function(x.shape[0])


ASKED: dict[str, Callable[[Any], Any]] = {
    "by a half": lambda n: 2 if n * 0.5 > 3.2 else 3,
    "a root": lambda n: int(n**0.5),
    "a tenth, rounded": lambda n: 2 if int(n * 0.1) * 10 == n else 3,
    "a truth of a quarter": lambda n: bool(n * 0.25 > 1.5),
}


@pytest.mark.parametrize(
    ("name", "also"), [*((name, False) for name in ASKED), ("by a half", True), ("a root", True)]
)
def test_what_goes_through_floats_is_refused_as_torch_does(name: str, also: bool) -> None:
    """Torch drops such questions where it writes those of integers into the graph."""
    shapes = ({0: torch.export.Dim("n", min=1, max=64)},)
    with pytest.raises(Exception, match=r"[Cc]onstraints? violat|[Nn]ot all values"):
        capture_export(Asks(ASKED[name], also=also), (torch.ones(8),), dynamic_shapes=shapes)


def test_what_does_not_hold_for_all_sizes_is_refused_as_torch_does() -> None:
    shapes = ({0: torch.export.Dim("n", min=1, max=64)},)
    with pytest.raises(Exception, match=r"[Cc]onstraints? violat"):
        capture_export(Halves(), (torch.ones(6),), dynamic_shapes=shapes)
