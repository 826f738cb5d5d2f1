"""Element-wise regions in C++: any chain of element-wise ops, with reductions over the inner axis.

A kernel walks the rows of a collapsed iteration space. What does not change along a row is computed
once for it; each reduction is a loop over the row, and so is what is left. Extents and strides are
run-time integers, so that one kernel serves all shapes of a region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import sympy
import torch

from fuseline.codegen.kernel import KernelTemplate
from fuseline.codegen.scalar import (
    COMPUTE,
    HALVES,
    ScalarError,
    Term,
    expression,
    literal,
    round_to,
)
from fuseline.ir.core import Func, Value
from fuseline.ir.layout import Layout
from fuseline.ir.ops.create import Full, Iota
from fuseline.ir.ops.fused import Copy
from fuseline.ir.ops.reduce import All, Amax, Amin, Any, Mean, Sum
from fuseline.ir.region import Axes, Node, Region, RegionError, analyse
from fuseline.ir.types import Dim, DType, dim

STORED = {
    DType.F64: "double",
    DType.F32: "float",
    DType.BF16: "fl_bf16",
    DType.F16: "fl_f16",
    DType.I64: "int64_t",
    DType.I32: "int32_t",
    DType.I16: "int16_t",
    DType.I8: "int8_t",
    DType.U8: "uint8_t",
    DType.BOOL: "fl_bool",
}
"""The C++ type of an element in memory."""


@dataclass(frozen=True)
class Pointer:
    """Where a row of an operand or result begins, as C++."""

    name: str
    type: str
    start: str
    written: bool


@dataclass(frozen=True)
class Loop:
    """One walk along a row: a reduction, or the last one, which stores.

    ``before`` are statements of the row, ``carried`` what a reduction sets up for a row and
    ``partial`` for a part of it; ``reduction`` the clauses of the loop, ``body`` its statements,
    ``join`` adds a part to the row, ``after`` gives the result.
    """

    before: tuple[str, ...] = ()
    body: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()
    partial: tuple[str, ...] = ()
    reduction: str = ""
    join: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class PointwiseKernel(KernelTemplate, template="cpp/pointwise.cpp.jinja"):
    """A region of element-wise ops over rows of ``n`` elements.

    ``buffers`` and ``dims`` name the arguments in order: operands, then results; ``n``, the extents
    ``e0``, ... of the axes around the row, and strides in elements. ``by_row`` says that workers
    share the rows, for reductions; otherwise they share the elements. Any extent may be 0.
    Numerics: each op rounds to the type of its result, as in eager; sums are accumulated in
    float32 over parts of 1024 elements, and the parts in float64.
    """

    title: str
    buffers: tuple[str, ...]
    dims: tuple[str, ...]
    outer: int
    by_row: bool
    pointers: tuple[Pointer, ...]
    constants: tuple[str, ...]
    loops: tuple[Loop, ...]
    last: tuple[str, ...]

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes around the row."""
        return tuple(range(self.outer))


@dataclass(frozen=True)
class Planned:
    """A kernel, the operands (by number) that it takes before the results, and its dims."""

    kernel: PointwiseKernel
    operands: tuple[int, ...]
    dims: tuple[Dim, ...]


@dataclass
class Access:
    """One way in which a kernel walks memory, or counts (without a buffer): strides by axis."""

    strides: list[Dim]
    buffer: int = -1
    written: bool = False
    dtype: DType = DType.I64
    shift: Dim = 0


def plan(
    body: Func,
    operands: Sequence[Layout],
    results: Sequence[Layout],
    shifts: Sequence[Dim] = (),
) -> Planned | str:
    """The kernel of a region whose operands and results lie as told, or why there is none.

    ``shifts`` are elements to add to the beginning of each result (for a part of a larger one).
    """
    try:
        region = analyse(body)
        return _Builder(body, region, operands, results, shifts).build()
    except (RegionError, ScalarError) as error:
        return str(error)


@dataclass
class _Walk:
    """A collapsed axis: its extent, and the stride of every access along it."""

    extent: Dim
    strides: list[Dim]


def _collapse(axes: Sequence[_Walk]) -> list[_Walk]:
    """Join neighbouring axes that every access walks as one; axes of extent 1 vanish."""
    found: list[_Walk] = []
    for axis in axes:
        if axis.extent == 1:
            continue
        last = found[-1] if found else None
        if last and last.strides == [dim(s * axis.extent) for s in axis.strides]:
            found[-1] = _Walk(dim(last.extent * axis.extent), axis.strides)
        else:
            found.append(axis)
    return found


@dataclass
class _Builder:
    """Turns a region and the layouts around it into a kernel."""

    body: Func
    region: Region
    layouts: Sequence[Layout]
    results: Sequence[Layout]
    shifts: Sequence[Dim]
    accesses: list[Access] = field(default_factory=list[Access])
    reads: dict[tuple[Value, Axes], int] = field(default_factory=dict[tuple[Value, Axes], int])
    counts: dict[Node, int] = field(default_factory=dict[Node, int])
    names: list[str] = field(default_factory=list[str])
    values: list[Dim] = field(default_factory=list[Dim])
    constants: list[str] = field(default_factory=list[str])

    def build(self) -> Planned:
        used = self._find_accesses()
        outer, inner = self._axes()
        self._dim("n", inner.extent)
        for i, axis in enumerate(outer):
            self._dim(f"e{i}", axis.extent)
        pointers = tuple(
            self._pointer(i, access, outer, inner) for i, access in enumerate(self.accesses)
        )
        text = _Writer(self, inner.strides)
        loops, last = text.write()
        kernel = PointwiseKernel(
            title=_title(self.region),
            buffers=self._buffers(used),
            dims=tuple(self.names),
            outer=len(outer),
            by_row=bool(self.region.reduced),
            pointers=tuple(p for p in pointers if p is not None),
            constants=tuple(self.constants),
            loops=loops,
            last=last,
        )
        return Planned(kernel, tuple(used), tuple(self.values))

    def _find_accesses(self) -> list[int]:
        """Note every way in which memory is walked; gives the numbers of the operands that are."""
        number = {arg: i for i, arg in enumerate(self.body.args)}
        used = sorted({number[n.value] for n in self.region.nodes if n.op is None})
        for node in self.region.nodes:
            if isinstance(node.op, Iota):
                self.counts[node] = self._access(node.axes, [1] * len(node.axes), Access([]))
            if node.op is None:
                i = number[node.value]
                access = Access([], used.index(i), dtype=node.value.dtype)
                strides = self.layouts[i].strides
                self.reads[node.value, node.axes] = self._access(node.axes, strides, access)
        for i, node in enumerate(self.region.results):
            shift = self.shifts[i] if self.shifts else 0
            access = Access([], len(used) + i, written=True, dtype=node.value.dtype, shift=shift)
            self._access(self.region.result_axes[i], self.results[i].strides, access)
        return used

    def _access(self, axes: Axes, strides: Sequence[Dim], access: Access) -> int:
        access.strides = [0] * len(self.region.space)
        for axis, stride in zip(axes, strides, strict=True):
            if axis >= 0 and self.region.space[axis] != 1:
                access.strides[axis] = dim(access.strides[axis] + stride)
        self.accesses.append(access)
        return len(self.accesses) - 1

    def _axes(self) -> tuple[list[_Walk], _Walk]:
        """The collapsed axes around the row, and the row."""
        walks = [
            _Walk(extent, [a.strides[i] for a in self.accesses])
            for i, extent in enumerate(self.region.space)
        ]
        outer = _collapse([walks[i] for i in self.region.kept])
        if not self.region.reduced:
            inner = [outer.pop()] if outer else []
        else:
            inner = _collapse([walks[i] for i in self.region.reduced])
        if len(inner) > 1:
            raise RegionError("the reduced axes cannot be walked as one")
        none = _Walk(1, [0] * len(self.accesses))
        return outer, inner[0] if inner else none

    def _dim(self, name: str, value: Dim) -> str:
        self.names.append(name)
        self.values.append(value)
        return f"dim[{len(self.names) - 1}]"

    def _pointer(
        self, i: int, access: Access, outer: Sequence[_Walk], inner: _Walk
    ) -> Pointer | None:
        """The start of a row of an access; also names its stride along the row where not 0 or 1."""
        terms = [
            f" + i{k} * {self._dim(f's{i}_{k}', axis.strides[i])}"
            for k, axis in enumerate(outer)
            if axis.strides[i] != 0
        ]
        if inner.strides[i] not in (0, 1):
            stride = self._dim(f"s{i}", inner.strides[i])
            self.constants.append(f"const int64_t s{i} = {stride};")
        if access.shift != 0:
            terms.append(f" + {self._dim(f'shift{i}', access.shift)}")
        if access.buffer < 0:
            return Pointer(f"k{i}", "", "0" + "".join(terms), written=False)
        start = f"call->buf[{access.buffer}]"
        kind = STORED[access.dtype] if access.written else f"const {STORED[access.dtype]}"
        return Pointer(f"p{i}", kind, f"({kind} *){start}{''.join(terms)}", access.written)

    def _buffers(self, used: Sequence[int]) -> tuple[str, ...]:
        """What the header says of the buffers: number and element type."""
        taken = [f"x{i} {self.body.args[j].dtype}" for i, j in enumerate(used)]
        made = [f"y{i} {v.dtype}" for i, v in enumerate(self.body.returns)]
        return (*taken, *made)

    def scalar(self, value: sympy.Expr) -> str:
        """A run-time integer that the region computes with."""
        return self._dim(f"c{len(self.names)}", value)


def _title(region: Region) -> str:
    """The ops of a region in order, for the head of the source."""
    names = [n.op.name for n in region.nodes if n.op is not None and not isinstance(n.op, Full)]
    return ", ".join(dict.fromkeys(names)) or "copy"


@dataclass
class _Writer:
    """Writes the statements of rows and of their elements."""

    builder: _Builder
    inner: Sequence[Dim]
    known: dict[tuple[Node, str], str] = field(default_factory=dict[tuple[Node, str], str])
    before: list[str] = field(default_factory=list[str])
    inside: list[str] = field(default_factory=list[str])
    number: dict[Node, int] = field(default_factory=dict[Node, int])
    varies: dict[Node, bool] = field(default_factory=dict[Node, bool])

    def write(self) -> tuple[tuple[Loop, ...], tuple[str, ...]]:
        """The loops of a row, and the statements behind them."""
        region = self.builder.region
        for i, node in enumerate(region.nodes):
            self.number[node] = i
            self.varies[node] = self._varies(node)
        loops = [self._reduce(n) for n in region.nodes if n.is_reduction]
        stores = [self._store(i) for i in range(len(region.results))]
        elements = [text for text, by_element in stores if by_element]
        rows = [text for text, by_element in stores if not by_element]
        if elements:
            loops.append(Loop(tuple(self.before), (*self.inside, *elements)))
            self.before = []
        return tuple(loops), (*self.before, *rows)

    def _varies(self, node: Node) -> bool:
        """Whether a value changes along the row."""
        if node.is_reduction:
            return False
        if node.op is None:
            return self.inner[self.builder.reads[node.value, node.axes]] != 0
        if isinstance(node.op, Iota):
            return self.inner[self.builder.counts[node]] != 0
        return any(self.varies[n] for n in node.inputs)

    def _index(self, access: int) -> str:
        stride = self.inner[access]
        return "0" if stride == 0 else "j" if stride == 1 else f"j * s{access}"

    def _emit(self, node: Node, kind: str, name: str, text: str) -> None:
        (self.inside if self.varies[node] else self.before).append(f"const {kind} {name} = {text};")

    def term(self, node: Node) -> Term:
        """The rounded value of a node, with the statements that give it."""
        constant = _constant(node)
        text = self.known.get((node, "rounded"))
        if text is None:
            leaf = node.op is None or isinstance(node.op, Full)
            text = self._leaf(node, constant) if leaf else self._rounded(node)
            self.known[node, "rounded"] = text
        return Term(text, node.value.tensor, constant)

    def _leaf(self, node: Node, constant: bool | int | float | None) -> str:
        if constant is not None:
            return literal(constant, node.value.dtype)
        name = f"v{self.number[node]}"
        if isinstance(node.op, Full):
            assert isinstance(node.op.value, sympy.Expr), "other values are constants"
            runtime = self.builder.scalar(node.op.value)
            text = f"({COMPUTE[node.value.dtype]}){runtime}"
            self._emit(node, "auto", name, round_to(text, node.value.dtype))
            return name
        access = self.builder.reads[node.value, node.axes]
        self._emit(node, "auto", name, f"fl_read(p{access} + {self._index(access)})")
        return name

    def _rounded(self, node: Node) -> str:
        raw, dtype = self.raw(node), node.value.dtype
        if dtype not in HALVES or isinstance(node.op, Copy):
            return raw
        name = f"v{self.number[node]}"
        self._emit(node, "float", name, round_to(raw, dtype))
        return name

    def raw(self, node: Node) -> str:
        """The value of a node before it is rounded to its type: what a store may round itself."""
        op, dtype = node.op, node.value.dtype
        if op is None or isinstance(op, Full):
            return self.term(node).text
        if isinstance(op, Copy):
            return self.term(node.inputs[0]).text
        if (node, "raw") in self.known:
            return self.known[node, "raw"]
        name = self.known[node, "raw"] = f"{'u' if dtype in HALVES else 'v'}{self.number[node]}"
        if isinstance(op, Iota):
            text = self._count(node, op)
        else:
            text = expression(op, [self.term(n) for n in node.inputs], dtype)
        self._emit(node, COMPUTE[dtype], name, text)
        return name

    def _count(self, node: Node, op: Iota) -> str:
        access = self.builder.counts[node]
        index = f"(k{access} + {self._index(access)})"
        start, step = (
            self.builder.scalar(v) if isinstance(v, sympy.Expr) else repr(v)
            for v in (op.start, op.step)
        )
        if not op.dtype.is_float:
            return f"({COMPUTE[op.dtype]})({index} * {step} + {start})"
        return f"({COMPUTE[op.dtype]})((double){index} * {step} + {start})"

    def _store(self, i: int) -> tuple[str, bool]:
        """The store of a result, and whether there is one for each element of a row."""
        node = self.builder.region.results[i]
        first = len(self.builder.accesses) - len(self.builder.region.results)
        access = first + i
        by_element = self.inner[access] != 0 or not self.builder.region.reduced
        text = f"fl_write(p{access} + {self._index(access)}, {self.raw(node)});"
        return text, by_element

    def _reduce(self, node: Node) -> Loop:
        """The loop of one reduction; afterwards its value is one of the row."""
        x = self.term(node.inputs[0])
        i, name = self.number[node], f"v{self.number[node]}"
        parts = _reduction(node, x, i)
        body = (*self.inside, parts.step)
        loop = replace(parts.loop, before=tuple(self.before), body=body)
        result = round_to(parts.result, node.value.dtype)
        self.before = [f"const {COMPUTE[node.value.dtype]} {name} = {result};"]
        self.inside = []
        self.known = {k: v for k, v in self.known.items() if not self.varies[k[0]]}
        self.known |= {(node, "rounded"): name, (node, "raw"): name}
        return loop


@dataclass(frozen=True)
class _Parts:
    """The pieces of a reduction: a step for each element, the result, and the loop around."""

    step: str
    result: str
    loop: Loop


def _constant(node: Node) -> bool | int | float | None:
    """The value of a constant as its type holds it; None for what is known only later."""
    op = node.op
    if not isinstance(op, Full) or isinstance(op.value, sympy.Expr):
        return None
    return torch.full((), op.value, dtype=op.dtype.torch).item()


def _reduction(node: Node, x: Term, i: int) -> _Parts:
    op, result = node.op, node.value.dtype
    match op:
        case Sum() | Mean() if result.is_float:
            wide = "double" if result is DType.F64 else "float"
            total = f"(total{i} / n)" if isinstance(op, Mean) else f"total{i}"
            loop = Loop(
                carried=(f"double total{i} = 0;",),
                partial=(f"{wide} part{i} = 0;",),
                reduction=f"reduction(+ : part{i})",
                join=(f"total{i} += part{i};",),
            )
            return _Parts(f"part{i} += {x.text};", f"({COMPUTE[result]}){total}", loop)
        case Sum():
            return _folded(f"uint64_t total{i} = 0;", f"total{i} += (uint64_t){x.text};", "+", i)
        case Any():
            return _folded(f"int32_t total{i} = 0;", f"total{i} |= {x.text} != 0;", "|", i, "!= 0")
        case All():
            return _folded(f"int32_t total{i} = 0;", f"total{i} |= {x.text} == 0;", "|", i, "== 0")
        case Amax() | Amin():
            return _extreme(op, x, result, i)
        case _:
            raise ScalarError(f"no reduction {op.name if op else ''} of {result}")


def _folded(declare: str, step: str, sign: str, i: int, test: str = "") -> _Parts:
    result = f"total{i} {test}" if test else f"(int64_t)total{i}"
    return _Parts(step, result, Loop(carried=(declare,), reduction=f"reduction({sign} : total{i})"))


_LIMITS = {
    DType.I64: ("INT64_MIN", "INT64_MAX"),
    DType.I32: ("INT32_MIN", "INT32_MAX"),
    DType.I16: ("INT16_MIN", "INT16_MAX"),
    DType.I8: ("INT8_MIN", "INT8_MAX"),
    DType.U8: ("0", "UINT8_MAX"),
    DType.BOOL: ("false", "true"),
}


def _extreme(op: Amax | Amin, x: Term, result: DType, i: int) -> _Parts:
    """Largest or smallest; a NaN anywhere is the result."""
    kind, name = COMPUTE[result], "max" if isinstance(op, Amax) else "min"
    sign = ">" if name == "max" else "<"
    low, high = _LIMITS.get(result, ("-__builtin_inff()", "__builtin_inff()"))
    first = low if name == "max" else high
    if result is DType.BOOL:
        kind = "uint8_t"
    step = f"most{i} = {x.text} {sign} most{i} ? {x.text} : most{i};"
    carried, clause = f"{kind} most{i} = {first};", f"reduction({name} : most{i})"
    if not result.is_float:
        return _Parts(step, f"({kind})most{i}", Loop(carried=(carried,), reduction=clause))
    return _Parts(
        f"{step} nan{i} |= {x.text} != {x.text};",
        f'nan{i} ? ({kind})__builtin_nanf("") : most{i}',
        Loop(
            carried=(carried, f"int32_t nan{i} = 0;"),
            reduction=f"{clause} reduction(| : nan{i})",
        ),
    )


__all__ = ["Loop", "Planned", "Pointer", "PointwiseKernel", "plan"]
