"""From emitted ops to the runtime's plan: buffers, steps, and what a call takes and gives."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import sympy

from fuseline.codegen.forms import described
from fuseline.codegen.kernel import KernelTemplate
from fuseline.codegen.library import LibraryKernel, ReferenceKernel, ScratchTensor
from fuseline.codegen.lower import Emitted, Launch, Operand, Scratch
from fuseline.ir.core import Func, Loc, Op, Value
from fuseline.ir.evaluate import Reference
from fuseline.ir.layout import Layout, LayoutMap
from fuseline.ir.ops.call import AtenCall, called, waits
from fuseline.ir.ops.experts import Experts, Moe
from fuseline.ir.ops.fused import GatedLinear, MergedLinear
from fuseline.ir.ops.norm_linear import NormLinear
from fuseline.ir.ops.view import unreshaped
from fuseline.ir.types import BufferType, Dim, IntType, dim, format_dim
from fuseline.passes.active_counts import active_counts
from fuseline.passes.pad_rows import PaddedRows, pad_rows
from fuseline.passes.plan import LiveRange, live_ranges, share_memory
from fuseline.report import KernelRecord, joined_sizes, span
from fuseline.report_tables import folded
from fuseline.runtime.plan import (
    ArgSpec,
    Buffer,
    Expr,
    HostStep,
    LibraryStep,
    NativeStep,
    PadArg,
    PadRule,
    Plan,
    RowAxis,
    Step,
    VariantSpec,
    View,
)

ALIGNMENT = 16
"""Bytes that kernels of a GPU read at once."""


def expr(value: Dim) -> Expr:
    """A dim as the runtime evaluates it."""
    return value if isinstance(value, int) else format_dim(value)


@dataclass(frozen=True)
class Assembled:
    """A plan, the kernels it calls by symbol, and what the report says of them.

    ``symbols`` tells the kernel of each op that has one: the last, where it has several; ``forms``
    what is done for which sizes, where that is chosen; and ``refusals`` why the others have none.
    ``owners`` has the op of each step, and ``ops`` those of each kernel of ours, by symbol.
    ``lives`` says from which op to which, of those that have steps, each value that these make is
    held, and ``buffers`` in which of the plan's buffers.
    """

    plan: Plan
    kernels: Mapping[str, KernelTemplate]
    records: tuple[KernelRecord, ...]
    symbols: Mapping[Op, str]
    refusals: Mapping[Op, str]
    forms: Mapping[Op, Mapping[str, str]]
    owners: tuple[Op, ...]
    ops: Mapping[str, tuple[Op, ...]]
    lives: Mapping[Value, LiveRange]
    buffers: Mapping[Value, int]


class _Assembler:
    def __init__(self, func: Func, layouts: LayoutMap, emitted: Sequence[Emitted]) -> None:
        self.func = func
        self.layouts = layouts
        self.emitted = emitted
        self.buffers: list[Buffer] = []
        self.of: dict[Value, int] = {}
        self.lives: Mapping[Value, LiveRange] = {}
        self.scratch = -1
        self.kernels: dict[str, KernelTemplate] = {}

    def run(self) -> Assembled:
        args = self._arguments()
        self._place_results()
        pairs = [(item.op, step) for item in self.emitted for step in self.steps(item)]
        plan = Plan(
            args=args,
            buffers=tuple(self.buffers),
            steps=tuple(step for _, step in pairs),
            returns=tuple(self._view(v) for v in self.func.returns),
            symbols=_symbol_sources(self.func),
            ranges={n: (r.lo, r.hi) for n, r in self.func.symbols.items()},
            packed=_packed_groups(self.func),
        )
        symbols = {i.op: i.launches[-1].kernel.symbol for i in self.emitted if i.launches}
        refusals = {i.op: i.refusal for i in self.emitted if not i.launches}
        forms = {i.op: described((n.form, n.when) for n in i.launches) for i in self.emitted}
        records, owners = tuple(self._records()), tuple(op for op, _ in pairs)
        ops: dict[str, dict[Op, None]] = {}
        for op, step in pairs:
            if isinstance(step, NativeStep):
                ops.setdefault(step.symbol, {})[op] = None
        return Assembled(
            *(plan, self.kernels, records, symbols, refusals, forms, owners),
            ops={symbol: tuple(users) for symbol, users in ops.items()},
            lives=self.lives,
            buffers=self.of,
        )

    def buffer(self, buffer: Buffer) -> int:
        """The number of one more buffer."""
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    def _arguments(self) -> tuple[ArgSpec, ...]:
        specs: list[ArgSpec] = []
        for number, arg in enumerate(self.func.args):
            if isinstance(arg.type, IntType):
                specs.append(ArgSpec(arg.hint, "int", value=expr(arg.type.value)))
                continue
            layout, kind = self.layouts.layout(arg), arg.origin.kind if arg.origin else ""
            specs.append(
                ArgSpec(
                    (arg.origin.name if arg.origin else "") or arg.hint,
                    "tensor",
                    arg.dtype.torch,
                    tuple(map(expr, arg.shape)),
                    tuple(map(expr, layout.strides)),
                    written=_is_written(arg),
                    fixed=kind in ("param", "const"),
                    stays=kind in ("param", "const", "buffer"),
                    aligned=arg not in self.layouts.askew,
                )
            )
            self.of[arg] = self.buffer(
                Buffer("arg", arg=number, dtype=arg.dtype.torch, name=arg.hint)
            )
        return tuple(specs)

    def _place_results(self) -> None:
        ranges = live_ranges(self.func, self.layouts, [item.op for item in self.emitted])
        self.lives = ranges
        returned = {self.layouts.root(v) for v in self.func.returns}
        host = {v for item in self.emitted if not item.launches for v in item.op.results}
        sizes = {v: v.tensor.nbytes for v in ranges}
        memory = share_memory(ranges.values(), sizes, returned | host)
        temps = [self.buffer(Buffer("temp", nbytes=expr(size))) for size in memory.temps]
        for value in ranges:
            if value in memory.place:
                self.of[value] = temps[memory.place[value]]
            else:
                kind = "host" if value in host else "output"
                self.of[value] = self.buffer(
                    Buffer(kind, expr(sizes[value]), dtype=value.dtype.torch, name=value.hint)
                )

    def _view(self, value: Value) -> View:
        placed = self.layouts[value]
        return View(
            self.of[placed.root],
            expr(_byte_offset(value, placed.layout)),
            value.dtype.torch,
            tuple(map(expr, value.shape)),
            tuple(map(expr, placed.layout.strides)),
        )

    def steps(self, item: Emitted) -> list[Step]:
        """What an op is done by."""
        if item.launches:
            return [self._launched(item, launch) for launch in item.launches]
        return [self._host(item.op, item.refusal)]

    def _host(self, op: Op, reason: str, launch: Launch | None = None) -> HostStep:
        """The op's reference: in the place of all launches, or of those for some sizes."""
        return HostStep(
            call=Reference(op),
            operands=tuple(self._view(v) for v in op.operands),
            results=tuple(self._view(v) for v in op.results),
            label=called(op),
            reason=reason,
            waits=isinstance(op, AtenCall) and waits(op.target),
            when=None if launch is None else _when(launch),
            placed=launch is not None,
            where=_where(op),
        )

    def _launched(self, item: Emitted, launch: Launch) -> Step:
        if isinstance(launch.kernel, ReferenceKernel):
            return self._host(item.op, launch.kernel.reason, launch)
        if isinstance(launch.kernel, LibraryKernel):
            return self._library(item, launch, launch.kernel)
        return self._native(item, launch)

    def _library(self, item: Emitted, launch: Launch, kernel: LibraryKernel) -> LibraryStep:
        views = [self._library_view(b) for b in launch.buffers]
        scratch = [b for b in launch.buffers if isinstance(b, ScratchTensor)]
        return LibraryStep(
            kernel.name,
            operands=tuple(views[: -kernel.results]),
            results=tuple(v for v in views[-kernel.results :] if v is not None),
            attributes=dict(kernel.attributes),
            label=item.op.name,
            when=_when(launch),
            scratch=expr(scratch[0].nbytes) if scratch else 0,
            where=_where(item.op),
        )

    def _library_view(self, operand: Operand) -> View | None:
        if isinstance(operand, ScratchTensor):
            shape, strides = tuple(map(expr, operand.shape)), tuple(map(expr, operand.strides))
            return View(self._scratch(), 0, operand.dtype.torch, shape, strides)
        return self._view(operand) if isinstance(operand, Value) else None

    def _native(self, item: Emitted, launch: Launch) -> NativeStep:
        self.kernels[launch.kernel.symbol] = launch.kernel
        buffers: list[tuple[int, Expr]] = []
        scratch: Expr = 0
        for operand in launch.buffers:
            if operand is None:
                buffers.append((-1, 0))
            elif isinstance(operand, Scratch):
                buffers.append((self._scratch(), 0))
                scratch = expr(operand.nbytes)
            else:
                placed = self.layouts[operand]
                offset = expr(_byte_offset(operand, placed.layout))
                buffers.append((self.of[placed.root], offset))
        return NativeStep(
            launch.kernel.symbol,
            tuple(buffers),
            tuple(map(expr, launch.dims)),
            expr(launch.work),
            label=item.op.name,
            when=_when(launch),
            scratch=scratch,
            where=_where(item.op),
            grid=(expr(launch.grid[0]), expr(launch.grid[1]), expr(launch.grid[2])),
            lane=launch.lane,
        )

    def _scratch(self) -> int:
        """The one buffer of scratch."""
        if self.scratch < 0:
            self.scratch = self.buffer(Buffer("scratch", name="scratch"))
        return self.scratch

    def _records(self) -> list[KernelRecord]:
        found: dict[tuple[str, str], KernelRecord] = {}
        counts: Counter[tuple[str, str]] = Counter()
        sizes: dict[tuple[str, str], dict[str, None]] = {}
        sources: dict[tuple[str, str], dict[Loc, None]] = {}
        for item in self.emitted:
            where = str(item.op.loc or "")
            plain = [] if item.launches else [item.refusal]
            plain += [
                n.kernel.reason for n in item.launches if isinstance(n.kernel, ReferenceKernel)
            ]
            for reason in plain:
                name = called(item.op)
                key = (name, reason)
                counts[key] += 1
                sources.setdefault(key, {}).update(dict.fromkeys(item.op.sources))
                found.setdefault(
                    key, KernelRecord(name, "", item.op.name, 0, where, "reference", reason)
                )
            for launch in item.launches:
                if isinstance(launch.kernel, ReferenceKernel):
                    continue
                key = (launch.kernel.symbol, "")
                counts[key] += 1
                sources.setdefault(key, {}).update(dict.fromkeys(item.op.sources))
                when = _when(launch)
                sizes.setdefault(key, {})[span(*when) if when else ""] = None
                family = launch.kernel.family
                symbol, status = launch.kernel.symbol, "native"
                if isinstance(launch.kernel, LibraryKernel):
                    symbol, status = launch.kernel.title, "library"
                record = KernelRecord(symbol, family, item.op.name, 0, where, status)
                found.setdefault(key, record)
        return [
            replace(
                r,
                launches=counts[key],
                sizes=joined_sizes(sizes.get(key, ())),
                sources=folded_places(sources[key]),
            )
            for key, r in found.items()
        ]


def assemble(func: Func, layouts: LayoutMap, emitted: Sequence[Emitted]) -> Assembled:
    """Plan the buffers of an emitted func and write down its steps."""
    return _Assembler(func, layouts, emitted).run()


def assemble_op(
    layouts: LayoutMap, item: Emitted, roots: Sequence[Value], symbols: Iterable[str]
) -> Plan:
    """A plan for one op, all of whose memory is given: its roots, then the symbols' values."""
    made = _Assembler(layouts.func, layouts, [item])
    args: list[ArgSpec] = []
    written = {layouts.root(v) for v in (*item.op.results, *filter(_is_written, item.op.operands))}
    for number, root in enumerate(roots):
        made.of[root] = made.buffer(Buffer("arg", arg=number, dtype=root.dtype.torch))
        strides = tuple(map(expr, layouts.layout(root).strides))
        spec = ArgSpec(root.hint, "tensor", root.dtype.torch, tuple(map(expr, root.shape)), strides)
        args.append(replace(spec, written=root in written, aligned=root not in layouts.askew))
    places = {name: (len(roots) + i, -1) for i, name in enumerate(symbols)}
    args += [ArgSpec(name, "int", value=name) for name in places]
    steps = tuple(made.steps(item))  # which make a buffer for scratch
    return Plan(tuple(args), tuple(made.buffers), steps, (), places, {})


def form_of(op: Op) -> str:
    """An op in words, with the types of what it takes and gives."""
    takes, gives = (", ".join(str(v.type) for v in vs) for vs in (op.operands, op.results))
    return f"{op.name} of {takes or 'nothing'}" + (f" -> {gives}" if gives else "")


def folded_places(places: Iterable[Loc]) -> tuple[str, ...]:
    """Places in words, those of many layers as one."""
    return tuple(folded(str(at) for at in places if at != Loc()))


def _where(op: Op) -> str:
    return "" if op.loc in (None, Loc()) else str(op.loc)


def _when(launch: Launch) -> tuple[Expr, int, int | None] | None:
    when = launch.when
    return None if when is None else (expr(when[0]), when[1], when[2])


def _byte_offset(value: Value, layout: Layout) -> Dim:
    return dim(layout.offset * value.dtype.itemsize)


def _is_written(arg: Value) -> bool:
    return isinstance(arg.type, BufferType)


def _symbol_sources(func: Func) -> dict[str, tuple[int, int]]:
    """Where each symbol is read from: the first argument that has it as a bare extent."""
    found: dict[str, tuple[int, int]] = {}
    for number, arg in enumerate(func.args):
        extents: Sequence[Dim] = (arg.type.value,) if isinstance(arg.type, IntType) else arg.shape
        for axis, extent in enumerate(extents):
            if isinstance(extent, sympy.Symbol):
                place = -1 if isinstance(arg.type, IntType) else axis
                found.setdefault(str(extent), (number, place))
    return found


def with_padding(plan: Plan, func: Func) -> Plan:
    """The plan of a func, with what its graphs may do: run calls as ones of larger sizes."""
    counts = active_counts(func)
    padded = {name: _held_by_strides(name, r, plan) for name, r in pad_rows(func).items()}
    return replace(
        plan,
        pads={n: _pad_rule(r) for n, r in padded.items() if isinstance(r, PaddedRows)},
        unpadded={n: r for n, r in padded.items() if isinstance(r, str) and n not in counts},
        variants=tuple(VariantSpec("adapters in use", n, most) for n, most in counts.items()),
    )


def _held_by_strides(name: str, rows: PaddedRows | str, plan: Plan) -> PaddedRows | str:
    """What `pad_rows` found of a size, but for one that tells how far apart the rows of an argument
    lie: that stays as it was given, unless it is copied into larger memory.
    """
    if isinstance(rows, str):
        return rows
    if not rows.args:
        return "no argument has so many rows"
    copied = {number for number, _ in rows.args}
    for number, spec in enumerate(plan.args):
        spaced = any(re.search(rf"\b{re.escape(name)}\b", str(s)) for s in spec.strides)
        if spaced and number not in copied:
            return f"{spec.name} has this size between its rows"
    return rows


def _pad_rule(rows: PaddedRows) -> PadRule:
    return PadRule(
        tuple(PadArg(number, axis) for number, axis in rows.args),
        tuple(
            tuple(RowAxis(axis, expr(outer), expr(inner)) for axis, outer, inner in dims)
            for dims in rows.returns
        ),
        tuple(map(expr, rows.limits)),
    )


def _packed_groups(func: Func) -> tuple[tuple[int, ...], ...]:
    """The groups of arguments that merged products read as one."""
    number = {arg: i for i, arg in enumerate(func.args)}
    groups: dict[tuple[int, ...], None] = {}
    for op in func.ops:
        for values in packed_operands(op):
            args = [unreshaped(v) for v in values]
            if all(arg in number for arg in args):  # else they are slices of one parameter
                groups[tuple(number[arg] for arg in args)] = None
    return tuple(groups)


def askew_arguments(func: Func) -> frozenset[Value]:
    """The parameters that packing moves to where no 16 bytes begin."""
    found: set[Value] = set()
    for op in func.ops:
        for values in packed_operands(op):
            end: Dim = 0
            for value in map(unreshaped, values):
                if value.owner is None and (not isinstance(end, int) or end % ALIGNMENT):
                    found.add(value)
                end = dim(end + value.tensor.nbytes)
    return frozenset(found)


def packed_operands(op: Op) -> list[tuple[Value, ...]]:
    """The operands of a merged product, or of experts, that lie one behind the other."""
    match op:
        case Experts():
            shared = op.shared_up if isinstance(op, Moe) else ()
            return [g for g in (op.up, op.down, shared) if len(g) > 1]
        case MergedLinear() | NormLinear():
            return [g for g in (op.weights, op.biases) if len(g) > 1]
        case GatedLinear(_, gate, up, gate_bias, up_bias):
            biases = [(gate_bias, up_bias)] if gate_bias and up_bias else []
            return [(gate, up), *biases]
        case _:
            return []
