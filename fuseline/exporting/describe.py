"""From what was captured and compiled to what an artifact says of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

from torch import Tensor

from fuseline.artifact.program import (
    Constant,
    Counted,
    Given,
    Input,
    Number,
    Passed,
    PlanFile,
    ProgramFile,
)
from fuseline.artifact.trees import Kind, Tree
from fuseline.compilation import Compilation
from fuseline.exporting.renaming import renamed
from fuseline.frontend.captured import (
    Captured,
    FromGraph,
    FromInput,
    FromNothing,
    FromSymbols,
    InputKind,
    Return,
)
from fuseline.frontend.export import Exported
from fuseline.frontend.imported import Imported, Ready
from fuseline.ir.core import Func, Value
from fuseline.ir.evaluate import Reference
from fuseline.ir.types import Dim, IntType, format_dim, symbol
from fuseline.report import KernelRecord
from fuseline.runtime.plan import Expr, HostStep

Program: TypeAlias = "Captured | Imported"
Ahead: TypeAlias = "Exported | Ready"

_CONTAINERS: dict[type, Kind] = {tuple: "tuple", list: "list", dict: "dict"}


def program_file(name: str, exported: Ahead, compilation: Compilation) -> ProgramFile:
    """What is stored of a program for the target that it was compiled for."""
    captured, func = exported.captured, compilation.func
    takes, gives = _trees(exported)
    plan = compilation.built.assembled.plan
    place = {op: number for number, op in enumerate(func.ops)}
    ops: dict[int, int] = {}
    for number, step in enumerate(plan.steps):
        if isinstance(step, HostStep):
            assert isinstance(step.call, Reference)
            ops[number] = place[step.call.op]
    report = compilation.report()
    file = ProgramFile(
        plan=PlanFile.of(plan, ops),
        inputs=(
            *(Input(stored_name(name, i), _KINDS[i.kind]) for i in captured.inputs),
            *(
                Input(str(_counted(func, arg)), "count")
                for arg in func.args[len(captured.inputs) :]
            ),
        ),
        takes=takes,
        gives=gives,
        returns=tuple(map(_owed, captured.returns)),
        symbols={s.name: (s.source[0], _axis(s.source[1])) for s in captured.symbols},
        complex=captured.pairs,
        numbers=tuple(
            Number(i, arg.origin.limits.lo, arg.origin.limits.hi)
            for i, arg in enumerate(func.args)
            if arg.origin is not None and arg.origin.kind == "number"
        ),
        traced={},
        sites=report.sites,
        kernels=tuple(map(_settled, report.kernels)),
        owners=tuple(place[op] for op in compilation.built.assembled.owners),
    )
    return renamed(file, exported.names) if isinstance(exported, Exported) else file


def _trees(exported: Ahead) -> tuple[Tree, Tree]:
    """What a call takes and gives."""
    if isinstance(exported, Exported):
        return tree_of(exported.in_spec, exported.constants), tree_of(exported.out_spec)
    named, given = exported.takes, exported.gives
    inputs = Tree("names", named, (Tree(),) * len(named))
    takes = Tree("tuple", (), (Tree("tuple"), inputs))
    return takes, Tree("dict", given, (Tree(),) * len(given))


def _settled(record: KernelRecord) -> KernelRecord:
    """A record that does not tell whether what was measured had been so in an earlier build."""
    choices = (replace(c, by="measurement") if c.by == "table" else c for c in record.choices)
    return replace(record, choices=tuple(choices))


def _counted(func: Func, arg: Value) -> int:
    """The number of the integer that an argument behind the captured ones is the tensor of."""
    assert arg.origin is not None
    assert arg.origin.kind == "count", f"an artifact keeps no {arg.origin.kind}"
    wanted = symbol(arg.origin.name)
    sizes = (i for i, a in enumerate(func.args) if isinstance(a.type, IntType))
    return next(i for i in sizes if cast("IntType", func.args[i].type).value == wanted)


_KINDS: dict[InputKind, Any] = {
    InputKind.PARAMETER: "weight",
    InputKind.BUFFER: "weight",
    InputKind.CONSTANT: "constant",
    InputKind.USER: "user",
    InputKind.SYMBOL: "symbol",
}


def stored_name(program: str, item: Any) -> str:
    """The name that an input's tensor is stored under: constants are of one program alone."""
    return f"{program}::{item.name}" if item.kind is InputKind.CONSTANT else str(item.name)


def tensors_of(program: str, captured: Program) -> dict[str, Tensor]:
    """Parameters, buffers and constants by the names that they are stored under."""
    return {
        stored_name(program, item): item.actual
        for item in captured.inputs
        if item.actual is not None
    }


def state_of(programs: Iterable[ProgramFile]) -> set[str]:
    """The names of the tensors that programs write and keep from call to call."""
    return {name for program in programs for name in program.state}


def groups_of(program: str, captured: Program, compilation: Compilation) -> list[list[str]]:
    """The tensors that lie one behind the other."""
    names = [stored_name(program, item) for item in captured.inputs]
    packed = compilation.built.assembled.plan.packed
    return [[names[i] for i in group] for group in packed]


def tree_of(spec: Any, constants: Mapping[int, Any] | None = None) -> Tree:
    """The nesting that torch has found of arguments or results.

    Args:
        spec: what torch says.
        constants: leaves that are the same in every call, by number.

    """
    return _Nesting(constants or {}).tree(spec)


@dataclass
class _Nesting:
    """A nesting in the making; ``leaf`` is the number of the next one."""

    constants: Mapping[int, Any]
    leaf: int = 0

    def tree(self, spec: Any) -> Tree:
        """One node."""
        if spec.is_leaf():
            number, self.leaf = self.leaf, self.leaf + 1
            fixed = number in self.constants
            return Tree("constant", value=self.constants[number]) if fixed else Tree()
        inner = tuple(self.tree(child) for child in spec.children())
        kind = _CONTAINERS.get(spec.type, "record")
        if kind in ("tuple", "list"):
            return Tree(kind, (), inner)
        context: Any = spec.context
        fields: Any = getattr(context, "_fields", context)  # the class of a named tuple
        names = list(cast("Sequence[Any]", fields)) if isinstance(fields, list | tuple) else []
        named = len(names) == len(inner) and all(isinstance(name, str) for name in names)
        if kind == "dict" and not named:
            raise TypeError(f"a dict with the keys {names}, which are no strings")
        return Tree(kind, tuple(names) if named else (), inner)


def _axis(dim: int | None) -> int:
    return -1 if dim is None else dim


def _expr(value: Dim) -> Expr:
    return value if isinstance(value, int) else format_dim(value)


def _owed(owed: Return) -> Given | Passed | Counted | Constant:
    match owed:
        case FromGraph(index):
            return Given(index)
        case FromInput(index, size, stride, offset):
            sizes, strides = tuple(map(_expr, size)), tuple(map(_expr, stride))
            return Passed(index, sizes, strides, _expr(offset))
        case FromSymbols(value):
            return Counted(_expr(value))
        case FromNothing(value):
            return Constant(value)


__all__ = [
    "Ahead",
    "groups_of",
    "program_file",
    "state_of",
    "stored_name",
    "tensors_of",
    "tree_of",
]
