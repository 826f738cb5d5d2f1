"""Arguments that do not begin at a multiple of 16 bytes, for kernels that read as much at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fuseline.runtime.memory import copy_into, copy_of
from fuseline.runtime.plan import Plan

ALIGNMENT = 16
"""Bytes that every argument of a program on a GPU begins at a multiple of."""


class Aligned:
    """Runs a program on copies of the arguments that lie askew (slices, mostly).

    What is written to a copy is copied back. Weights are not looked at here: the program's
    signature refuses those that lie askew, which torch's allocator never gives.
    """

    def __init__(self, run: Callable[[Sequence[Any]], Sequence[Tensor]], plan: Plan) -> None:
        self.run = run
        self.moving = [
            (number, spec.written)
            for number, spec in enumerate(plan.args)
            if spec.kind == "tensor" and not spec.fixed
        ]

    def __call__(self, arguments: Sequence[Any]) -> Sequence[Tensor]:
        """Run the program."""
        askew = [
            (number, written)
            for number, written in self.moving
            if arguments[number].data_ptr() % ALIGNMENT
        ]
        if not askew:
            return self.run(arguments)
        given = list(arguments)
        with torch.no_grad():
            for number, _ in askew:
                given[number] = copy_of(given[number])
            results = self.run(given)
            for number, written in askew:
                if written:
                    copy_into(arguments[number], given[number])
        return results
