"""Capture of small programs, and runs of them by the plain graph and by the imported func."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from fuseline.frontend.captured import Argument, Captured
from fuseline.frontend.execute import Compiled, interpret
from fuseline.frontend.importer import DependsOnData, import_captured
from fuseline.frontend.warm import FormStore
from fuseline.frontend.wrap import wrap
from fuseline.ir.core import Func
from fuseline.ir.evaluate import evaluate
from fuseline.ir.text import parse_func, print_func
from fuseline.ir.verify import verify
from fuseline.report import Report


@dataclass
class Evaluated:
    """A func run by its references, which can be brought back from its text."""

    func: Func
    saved: str

    def __call__(self, arguments: Sequence[Argument]) -> Sequence[Tensor]:
        return evaluate(self.func, arguments)


@dataclass
class Recording:
    """A compile step that keeps what it is given, and runs it by ATen or by the imported func.

    Programs with sizes that only the data tells are refused, unless they are ``unknown`` sizes to
    look at.
    """

    dynamic: bool | None = True
    imported: bool = True
    eager: tuple[str, ...] = ()
    unknown: bool = False
    captured: list[Captured] = field(default_factory=list[Captured])
    funcs: list[Func] = field(default_factory=list[Func])
    forms: FormStore | None = None
    restored: int = 0

    def step(self, captured: Captured) -> Compiled:
        self.captured.append(captured)
        if not self.imported:
            return interpret(captured)
        func = import_captured(captured)
        verify(func)
        text = print_func(func)
        assert print_func(parse_func(text)) == text
        if func.unknown_sizes and not self.unknown:
            raise DependsOnData("only the data tells a size")
        self.funcs.append(func)
        return Evaluated(func, text)

    def begin(self) -> None:
        pass

    def plain(self, name: str, reason: str) -> None:
        pass

    def broken(self, where: str, reason: str) -> None:
        pass

    @property
    def required(self) -> None:
        return None

    def factors(self, target: object) -> Mapping[str, Any]:
        return {}

    def restore(self, saved: str) -> Compiled:
        self.restored += 1
        return Evaluated(parse_func(saved), saved)

    def report(self) -> Report:
        return Report()


def record(
    target: Any,
    *,
    dynamic: bool | None = True,
    imported: bool = True,
    eager: tuple[str, ...] = (),
    unknown: bool = False,
) -> tuple[Any, Recording]:
    """A compiled form of a function or module, and what its compile step sees."""
    torch.compiler.reset()
    recording = Recording(dynamic, imported, eager, unknown)
    return wrap(target, lambda: recording), recording


One: TypeAlias = Callable[[Any], Any]


def one(program: One) -> One:
    """A lambda of one argument, for the type checker."""
    return program


def capture(target: Callable[..., Any], *args: Any, dynamic: bool | None = True) -> Captured:
    """The one program that a call of a function is captured as."""
    compiled, recording = record(target, dynamic=dynamic, imported=False)
    with torch.no_grad():
        compiled(*args)
    (captured,) = recording.captured
    return captured


def mark_dynamic(*tensors: Tensor) -> None:
    """Let the first size of each tensor vary, and no other."""
    dynamo: Any = vars(torch)["_dynamo"]
    for tensor in tensors:
        dynamo.maybe_mark_dynamic(tensor, 0)


def seed(number: int) -> None:
    """Seed torch's generator."""
    cast("Any", torch).manual_seed(number)


def calls(func: Func) -> list[str]:
    """The ATen calls that a func keeps whole."""
    return [getattr(op, "target", "") for op in func.ops if op.name == "aten.call"]


def ops(func: Func) -> list[str]:
    """The names of a func's ops, constants left out."""
    return [op.name for op in func.ops if op.name != "full"]


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Seeded normal numbers."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)
