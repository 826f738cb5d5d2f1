"""Reads a program of an artifact, and holds its numbers to each other: what is indexed is there.

What depends on the sizes of a call is checked for each set of them, in `fuseline.artifact.bounds`.
What a kernel does with the pointers and sizes that it is given nobody can tell beforehand.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fuseline.artifact.archive import Archive, damaged
from fuseline.artifact.check import is_symbol
from fuseline.artifact.codec import MOST_JSON, MalformedError
from fuseline.artifact.manifest import CudaKernel, Manifest, Target, load_json
from fuseline.artifact.program import Counted, Given, HostOp, Input, Passed, ProgramFile
from fuseline.artifact.trees import Tree
from fuseline.expressions import is_integer_expression, is_size_name
from fuseline.runtime.library import LIBRARY
from fuseline.runtime.plan import (
    WORKERS,
    ArgSpec,
    Expr,
    LibraryStep,
    NativeStep,
    PadArg,
    Plan,
    View,
)

MOST_DIMS = 64
"""Of a tensor: torch has no more."""

MOST_DEPTH = 64
"""Containers within one another, in what a call takes or gives."""

MOST_TEXT = 1 << 20
"""Characters of all expressions of a program, which are compiled as one function."""

SHOWN = {"registers", "shared_memory", "spills", "widest_load", "widest_store"}
"""What is shown of the machine code of a kernel for GPUs."""

MOST_PAIRS = 1 << 23
"""Of steps of one op, for all ops: what runs for which sizes is found by looking at each pair."""

MOST_GROUPS = 8
"""Groups that one weight may be in: where it cannot lie in all of them, it is copied."""


def read_program(archive: Archive, manifest: Manifest, target: Target, name: str) -> ProgramFile:
    """A program for a target, checked.

    Raises:
        ArtifactError: FL1102, if it is not what it should be; FL1103, if it was changed.

    """
    member = target.programs[name]
    raw = load_json(archive, member, archive.checked(member, manifest.members[member], MOST_JSON))
    try:
        found = ProgramFile.of_json(raw, member)
        check_program(found, target)
        if found.plan.kernels and target.name == "cpu" and name not in target.libraries:
            raise MalformedError("kernels, and no library with them")
    except (MalformedError, RecursionError) as error:
        said = str(error)
        raise damaged(
            archive.path, said if said.startswith(member) else f"{member}: {said}"
        ) from error
    return found


def check_program(program: ProgramFile, target: Target) -> None:
    """Hold the numbers of a program to each other, and to the kernels that there are.

    Raises:
        MalformedError: something does not fit.

    """
    for check in (_counts, _arguments, _steps, _order, _owners, _results, _padding, _expressions):
        check(program)
    if target.name != "cpu":
        _launches(program, target.kernels)


def _counts(program: ProgramFile) -> None:
    plan = program.plan
    for kernel in program.kernels:
        if kernel.resources and not kernel.resources.keys() >= SHOWN:
            raise MalformedError(f"{kernel.symbol[:80]!r} lacks numbers of its machine code")
    _same(len(program.inputs), len(plan.args), "inputs")
    takes, gives = program.takes, program.gives
    _tree(takes, 0)
    _tree(gives, 0)
    kinds = [child.kind for child in takes.children]
    by_place = kinds == ["tuple", "names"] and not takes.children[0].children
    if takes.kind != "tuple" or not (kinds == ["tuple", "dict"] or by_place):
        raise MalformedError(f"a call that takes {str(takes)[:60]}")
    user = [i for i in program.inputs if i.kind in ("user", "symbol")]
    _same(len(user), takes.leaves, "leaves of a call")
    _same(len(program.returns), gives.leaves, "leaves of a result")


def _tree(tree: Tree, depth: int) -> None:
    if depth > MOST_DEPTH:
        raise MalformedError(f"more than {MOST_DEPTH} containers within one another")
    named = tree.kind in ("dict", "names", "record")
    missing = tree.kind in ("dict", "names") and len(tree.keys) != len(tree.children)
    if missing or (
        tree.keys and (len(tree.keys) != len(tree.children) or tree.kind in ("leaf", "constant"))
    ):
        raise MalformedError(f"{len(tree.keys)} keys for {len(tree.children)} children")
    plain = tree.kind in ("leaf", "constant")
    if (plain and tree.children) or (named and len(set(tree.keys)) != len(tree.keys)):
        raise MalformedError("a leaf with children, or keys of the same name")
    for child in tree.children:
        _tree(child, depth + 1)


def _count(program: ProgramFile, item: Input) -> None:
    numbered = item.name.isascii() and item.name.isdecimal() and len(item.name) < 10
    if not numbered or not 0 <= int(item.name) < len(program.inputs):
        raise MalformedError(f"a count of {item.name[:60]!r}")
    if program.inputs[int(item.name)].kind != "symbol":
        raise MalformedError(f"a count of the input {item.name}, which is no integer")


def _arguments(program: ProgramFile) -> None:
    plan = program.plan
    for item, spec in zip(program.inputs, plan.args, strict=True):
        if len(spec.shape) > MOST_DIMS or len(spec.shape) != len(spec.strides):
            raise MalformedError(f"{len(spec.shape)} dims and {len(spec.strides)} strides")
        if item.kind in ("weight", "constant") and spec.kind != "tensor":
            raise MalformedError(f"a weight {item.name[:60]!r} that is no tensor")
        if item.kind == "count":
            _count(program, item)
        for size in (*spec.shape, *spec.strides, spec.value):
            if isinstance(size, int) and size < 0:
                raise MalformedError(f"a size of {size}")
    kinds = [buffer.kind for buffer in plan.buffers]
    first = kinds.count("arg")
    if "arg" in kinds[first:]:
        raise MalformedError("a buffer of an argument behind others")
    for buffer in plan.buffers[:first]:
        _in(buffer.arg, len(plan.args), "argument")
        if plan.args[buffer.arg].kind != "tensor":
            raise MalformedError("a buffer of an argument that is no tensor")
    uses = Counter[int]()
    for group in plan.packed:
        uses.update(group)
        for number in group:
            _in(number, len(plan.args), "argument")
            if program.inputs[number].kind not in ("weight", "constant"):
                raise MalformedError("a packed argument that is no weight")
    if max(uses.values(), default=0) > MOST_GROUPS:
        raise MalformedError(f"a weight that is packed more than {MOST_GROUPS} times")
    for number in (*program.complex, *(n.input for n in program.numbers)):
        _in(number, len(plan.args), "argument")


def _views(program: ProgramFile) -> Iterator[View]:
    for step in program.plan.steps:
        if not isinstance(step, NativeStep):
            yield from (view for view in (*step.operands, *step.results) if view is not None)
    yield from program.plan.returns


def _steps(program: ProgramFile) -> None:
    plan = program.plan
    for view in _views(program):
        _in(view.buffer, len(plan.buffers), "buffer")
        if len(view.shape) > MOST_DIMS or len(view.shape) != len(view.strides):
            raise MalformedError(f"{len(view.shape)} dims and {len(view.strides)} strides")
    for step in plan.steps:
        match step:
            case NativeStep():
                for number, _ in step.buffers:
                    _in(number, len(plan.buffers), "buffer", least=-1)
                if not is_symbol(step.symbol):
                    raise MalformedError(f"a kernel of the name {step.symbol[:60]!r}")
            case LibraryStep():
                _call(step)
            case HostOp():
                _in(step.op, 1 << 31, "op")
                kinds = {plan.buffers[view.buffer].kind for view in step.results}
                if "host" in kinds if step.placed else kinds - {"host"}:
                    raise MalformedError(f"{step.op} writes {', '.join(sorted(kinds))}")


def _call(step: LibraryStep) -> None:
    function: Callable[..., Any] | None = LIBRARY.get(step.name)
    if function is None:
        raise MalformedError(f"no library function {step.name[:60]!r}")
    try:
        inspect.signature(function).bind([], [], **step.attributes)
    except TypeError as error:
        raise MalformedError(f"{step.name}: {error}") from error


def _order(program: ProgramFile) -> None:
    """What torch makes as a plan runs has no memory before: no step and no result may read it."""
    plan = program.plan
    made: set[int] = set()

    def read(numbers: Iterable[int]) -> None:
        for number in numbers:
            if number >= 0 and plan.buffers[number].kind == "host" and number not in made:
                raise MalformedError(f"buffer {number} is read before it is written")

    for step in plan.steps:
        if isinstance(step, NativeStep):
            read(number for number, _ in step.buffers)
            continue
        read(view.buffer for view in step.operands if view is not None)
        if isinstance(step, LibraryStep):
            read(view.buffer for view in step.results)
        else:
            made |= {view.buffer for view in step.results}
    read(view.buffer for view in plan.returns)


def _owners(program: ProgramFile) -> None:
    _same(len(program.owners), len(program.plan.steps), "owners of steps")
    if sum(count * count for count in Counter(program.owners).values()) > MOST_PAIRS:
        raise MalformedError("more steps of one op than any has")


def _results(program: ProgramFile) -> None:
    plan = program.plan
    for places, exact in ((plan.symbols, True), (program.symbols, False)):
        for name, (number, axis) in places.items():
            if not is_size_name(name) or name == WORKERS:
                raise MalformedError(f"{name[:60]!r} is no name of a size")
            _in(number, len(plan.args), "argument")
            spec = plan.args[number]
            _in(axis, len(spec.shape), "dim", least=-1)
            if exact and not any(_shows(spec, name) for spec in plan.args):
                raise MalformedError(f"no argument shows {name!r}")
    for owed in program.returns:
        if isinstance(owed, Given):
            _in(owed.result, len(plan.returns), "result")
        elif isinstance(owed, Passed):
            _in(owed.input, len(plan.args), "argument")
            if plan.args[owed.input].kind != "tensor" or len(owed.shape) != len(owed.strides):
                raise MalformedError("a result that is a view of no tensor")


def _shows(spec: ArgSpec, name: str) -> bool:
    return name in (*spec.shape, *spec.strides, spec.value)


def _padding(program: ProgramFile) -> None:
    plan = program.plan
    for name, rule in plan.pads.items():
        if name not in plan.symbols:
            raise MalformedError(f"no size {name[:60]!r} that could grow")
        _pads(plan.args, rule.args)
        if rule.returns:
            _same(len(rule.returns), len(plan.returns), "results that grow")
        for dims, view in zip(rule.returns, plan.returns, strict=False):
            for dim in dims:
                _in(dim.axis, len(view.shape), "dim")
    for variant in plan.variants:
        if variant.symbol not in plan.symbols or not 0 <= variant.most < 1 << 31:
            raise MalformedError(f"a count {variant.symbol[:60]!r} of at most {variant.most}")
        _pads(plan.args, variant.args)


def _pads(args: tuple[ArgSpec, ...], pads: tuple[PadArg, ...]) -> None:
    for pad in pads:
        _in(pad.arg, len(args), "argument")
        _in(pad.axis, len(args[pad.arg].shape), "dim")


def _expressions(program: ProgramFile) -> None:
    ops = dict.fromkeys(program.plan.ops, _nothing)
    plan: Plan = program.plan.plan(ops)
    own: list[Expr] = []
    for owed in program.returns:
        if isinstance(owed, Passed):
            own += [*owed.shape, *owed.strides, owed.offset]
        elif isinstance(owed, Counted):
            own.append(owed.value)
    texts = dict.fromkeys((*plan.expressions(), *(e for e in own if isinstance(e, str))))
    if sum(map(len, texts)) > MOST_TEXT:
        raise MalformedError("more expressions than a program has")
    inner, outer = {*plan.symbols, WORKERS}, set(program.symbols)
    for text in plan.expressions():
        _is_size(text, inner)
    for text in own:
        _is_size(text, outer)


def _is_size(expr: Expr, names: set[str]) -> None:
    if isinstance(expr, str) and not is_integer_expression(expr, names):
        raise MalformedError(f"{expr[:60]!r} is no size")


def _launches(program: ProgramFile, kernels: Mapping[str, CudaKernel]) -> None:
    """Every launch on a GPU gives what its kernel takes."""
    for step in program.plan.steps:
        if not isinstance(step, NativeStep):
            continue
        kernel = kernels.get(step.symbol)
        if kernel is None:
            raise MalformedError(f"no kernel {step.symbol[:60]!r}")
        taken = kernel.parameters[: len(kernel.parameters) - kernel.scratch_pointers]
        pointers = sum(kind.startswith("*") for kind in taken)
        _same(len(step.buffers), pointers, f"buffers of {step.symbol}")
        _same(len(step.dims), len(taken) - pointers, f"sizes of {step.symbol}")


def _in(number: int, count: int, what: str, least: int = 0) -> None:
    if not least <= number < count:
        raise MalformedError(f"{what} {number} of {count}")


def _same(one: int, other: int, what: str) -> None:
    if one != other:
        raise MalformedError(f"{one} {what} for {other}")


def _nothing(binding: Mapping[str, int], tensors: Any) -> Any:
    raise NotImplementedError


__all__ = ["check_program", "read_program"]
