"""A program before all passes: what the compiler is given, however it was captured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from fuseline.frontend.captured import Argument, Captured, Input
from fuseline.frontend.imported import Imported
from fuseline.frontend.importer import import_captured, import_dim
from fuseline.ir.core import Func, Value
from fuseline.ir.layout import Layout, dense
from fuseline.ir.types import IntType, free_symbols
from fuseline.passes.plan import Owed
from fuseline.runtime import packing


@dataclass(frozen=True)
class Source:
    """A program before all passes: what gives its func, how its arguments lie in memory, and what
    is owed for its results. Where nothing else is said, all of that is dense.
    """

    name: str
    make: Callable[[], Func]
    captured: Captured | None = None
    known: Sequence[Argument | None] = ()
    """The arguments that are at hand before a call."""

    @classmethod
    def of_capture(cls, captured: Captured) -> Source:
        """A captured program."""

        def make() -> Func:
            func = import_captured(captured)
            pin(func, captured)
            return func

        return cls(captured.name, make, captured, [item.actual for item in captured.inputs])

    @classmethod
    def of_import(cls, program: Imported) -> Source:
        """A program that comes as IR."""

        def make() -> Func:
            func = program.func.clone()
            pin_import(func, program)
            return func

        return cls(program.name, make, known=[item.actual for item in program.inputs])

    def layouts(self, func: Func) -> dict[Value, Layout]:
        """The strides of the arguments."""
        if self.captured is not None:
            return argument_layouts(func, self.captured.inputs)
        tensors = [a for a in func.args if not isinstance(a.type, IntType)]
        return {a: dense([1 if e == 0 else e for e in a.shape]) for a in tensors}  # as torch's are

    def sizes(self) -> dict[str, int]:
        """What the sizes were for the inputs that the program was captured with."""
        return {} if self.captured is None else self.captured.example_sizes

    def owed(self, func: Func) -> list[Owed]:
        """What a caller may expect of the results."""
        if self.captured is not None:
            return _owed(self.captured)
        return [Owed(i, dense(v.shape).strides) for i, v in enumerate(func.returns)]


def pin(func: Func, captured: Captured) -> None:
    """Note on each parameter why it cannot be moved beside others, where that is so, and on each
    integer why it stays a size.
    """
    strides = [layout.strides for layout in argument_layouts(func, captured.inputs).values()]
    strides += [result.strides for result in captured.results]
    counted = {name for each in strides for stride in each for name in free_symbols(stride)}
    for arg in func.args:
        number = isinstance(arg.type, IntType) and free_symbols(arg.type.value) & counted
        if number and arg.origin is not None:
            arg.origin = replace(arg.origin, pinned="strides are counted by it")
    params = {
        arg: item.actual
        for arg, item in zip(func.args, captured.inputs, strict=True)
        if arg.origin is not None and arg.origin.kind == "param"
    }
    known = {arg.hint: actual for arg, actual in params.items() if actual is not None}
    reasons = packing.pinned(known)
    for arg, actual in params.items():
        reason = "its memory is not known" if actual is None else reasons.get(arg.hint, "")
        if reason and arg.origin is not None:
            arg.origin = replace(arg.origin, pinned=reason)


def pin_import(func: Func, program: Imported) -> None:
    """Note on each parameter of a program that comes as IR why it cannot be moved beside others."""
    params = {
        str(number): item.actual
        for number, (arg, item) in enumerate(zip(func.args, program.inputs, strict=True))
        if arg.origin is not None and arg.origin.kind == "param" and item.actual is not None
    }
    reasons = packing.pinned(params)
    for number, arg in enumerate(func.args):
        if str(number) in params and arg.origin is not None:
            arg.origin = replace(arg.origin, pinned=reasons.get(str(number), ""))


def argument_layouts(func: Func, inputs: Sequence[Input]) -> dict[Value, Layout]:
    """The strides that the arguments were captured with; what the program adds itself is dense."""
    layouts = {own: dense(own.shape) for own in func.args[len(inputs) :]}
    for arg, item in zip(func.args, inputs, strict=False):
        if isinstance(item.value, Tensor):
            strides = tuple(import_dim(s) for s in item.value.stride())
            layouts[arg] = Layout(0, strides)
    return layouts


def _owed(captured: Captured) -> list[Owed]:
    return [Owed(result.group, result.strides) for result in captured.results]


__all__ = ["Source", "argument_layouts", "pin", "pin_import"]
