"""What experts compute between their two products, element by element."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fuseline.ir.core import Func, Op, Trait, Value
from fuseline.ir.ops.create import Full
from fuseline.ir.ops.view import Reshape, Slice
from fuseline.ir.types import TensorType
from fuseline.passes.expert_rows import unshaped
from fuseline.passes.wording import called, readers_beside


class Refused(Exception):
    """A predicate that failed; the message is the reason of the miss."""


@dataclass(frozen=True)
class Columns:
    """Columns of a product: ``length`` from ``start`` on, every ``step``-th."""

    start: int
    length: int
    step: int = 1


@dataclass(frozen=True)
class Body:
    """The func between the products, and which columns of them it takes.

    Attributes:
        func: over the sides, ``[I]`` each.
        gated: whether it takes gate and up.
        interleaved: whether gate and up are every second column.
        inside: the ops that it stands for.
    """

    func: Func
    gated: bool
    interleaved: bool
    inside: frozenset[Op]


def body_between(sources: Sequence[Value], widths: Sequence[int], inner: Value) -> Body:
    """The body that makes ``inner`` of the products: of one, or of gate and up apart.

    A source is a product with its bias, ``widths`` columns wide.

    Raises:
        Refused: something else than element-wise ops on the products stands between.

    """
    walk = _Walk(tuple(sources), tuple(widths))
    made = unshaped(inner)
    if made is not inner and inner.owner is not None:
        walk.inside.add(inner.owner)
    tail = _tail(made, widths)
    width = made.shape[-1 - tail]
    if not isinstance(width, int):
        raise Refused(f"{called(made)} is {made.type}, of a width that is not known")
    result = walk.visit(made, Columns(0, width), tail)
    sides = sorted(walk.sides, key=lambda s: (s[0], s[1].start))
    gated, interleaved = _form(widths, sides, width)
    func = Func("body")
    args: dict[tuple[int, Columns], Value] = {}
    for number, side in enumerate(_wanted(len(sources), gated, interleaved, width)):
        kind = TensorType(sources[side[0]].dtype, (width,))
        args[side] = func.add_arg(kind, ("gate", "up")[number] if gated else "up")
    func.set_returns([walk.build(result, func, args)])
    return Body(func, gated, interleaved, frozenset(walk.inside))


def _tail(inner: Value, widths: Sequence[int]) -> int:
    """How many dims of 1 stand behind the columns of a value, as in products of one vector each."""
    wanted = {*widths, *(width // 2 for width in widths)}
    for tail, extent in enumerate(reversed(inner.shape)):
        if extent in wanted:
            return tail
        if extent != 1:
            break
    return 0


def _wanted(count: int, gated: bool, interleaved: bool, width: int) -> list[tuple[int, Columns]]:
    """The sides in the order that the op has them."""
    if count > 1:
        return [(i, Columns(0, width)) for i in range(count)]
    if not gated:
        return [(0, Columns(0, width))]
    if interleaved:
        return [(0, Columns(i, width, 2)) for i in range(2)]
    return [(0, Columns(i * width, width)) for i in range(2)]


def _form(
    widths: Sequence[int], sides: Sequence[tuple[int, Columns]], width: int
) -> tuple[bool, bool]:
    """Whether the sides are gate and up, and interleaved."""
    if not sides:
        raise Refused("what the second product reads does not come from the first one")
    if len(widths) > 2:
        raise Refused(f"the activation takes {len(widths)} products, expected one or two")
    two = len(widths) == 2
    for gated, interleaved in ((two, False), (True, False), (True, True)):
        fits = two or widths[0] == width * (1 + gated)
        if fits and set(sides) <= set(_wanted(len(widths), gated, interleaved, width)):
            return gated, interleaved
    shown = ", ".join(f"{c.start}..{c.start + c.length * c.step} by {c.step}" for _, c in sides)
    raise Refused(
        f"the columns {shown} of {widths[0]} are neither all, nor halves, nor every second one"
    )


@dataclass
class _Node:
    """A value as seen from some of its columns: an argument, a constant, or an op on nodes."""

    op: Op | None
    value: Value
    inputs: tuple[_Node, ...] = ()
    side: tuple[int, Columns] | None = None
    built: dict[Func, Value] = field(default_factory=dict[Func, Value])


@dataclass
class _Walk:
    sources: tuple[Value, ...]
    widths: tuple[int, ...]
    sides: set[tuple[int, Columns]] = field(default_factory=set[tuple[int, Columns]])
    inside: set[Op] = field(default_factory=set[Op])
    nodes: dict[tuple[Value, Columns], _Node] = field(
        default_factory=dict[tuple[Value, Columns], _Node]
    )

    def visit(self, value: Value, columns: Columns, tail: int) -> _Node:
        """The node of a value, looked at in some columns that so many dims of 1 stand behind."""
        key = (value, columns)
        if key not in self.nodes:
            self.nodes[key] = self._follow(value, columns, tail)
        return self.nodes[key]

    def _follow(self, value: Value, columns: Columns, tail: int) -> _Node:
        op = value.owner
        root = value if value in self.sources else unshaped(value)
        if root in self.sources:
            return self._side(self.sources.index(root), value, columns, tail)
        match op:
            case Full(shape=()):
                return _Node(op, value)
            case Slice(x, axis=axis, start=int(start), step=step) if (
                axis == len(x.shape) - 1 - tail
            ):
                self.inside.add(op)
                first = start + columns.start * step
                return self.visit(x, Columns(first, columns.length, step * columns.step), tail)
            case Reshape(x) if (kept := _tail_before(x, value, tail)) is not None:
                self.inside.add(op)
                return self.visit(x, columns, kept)
            case Op() if op.has(Trait.POINTWISE):
                self.inside.add(op)
                inputs = tuple(
                    self.visit(v, self._column_of(v, value, columns), tail) for v in op.operands
                )
                return _Node(op, value, inputs)
            case _:
                raise Refused(f"between the products of the experts stands {called(value)}")

    def _side(self, number: int, value: Value, columns: Columns, tail: int) -> _Node:
        if value.shape[-1 - tail] != self.widths[number]:
            raise Refused(
                f"of a product, {self.sources[number].type}, the dim of {value.shape[-1 - tail]} "
                f"in {value.type} is read, not its {self.widths[number]} columns"
            )
        if value.owner is not None and value is not self.sources[number]:
            self.inside.add(value.owner)
        self.sides.add((number, columns))
        return _Node(None, value, side=(number, columns))

    def _column_of(self, operand: Value, value: Value, columns: Columns) -> Columns:
        if not operand.shape or operand.shape == value.shape:
            return columns
        raise Refused(
            f"between the products of the experts {called(operand)}, {operand.type}, "
            f"is broadcast against {value.type}"
        )

    def build(self, node: _Node, func: Func, args: dict[tuple[int, Columns], Value]) -> Value:
        """The node's value in a func."""
        if node.side is not None:
            return args[node.side]
        if func not in node.built:
            assert node.op is not None, "a node that is no argument has an op"
            mapping = {
                v: self.build(n, func, args)
                for v, n in zip(node.op.operands, node.inputs, strict=True)
            }
            op = func.append(node.op.clone(mapping))
            op.loc, op.also = None, ()
            node.built[func] = op.results[node.op.results.index(node.value)]
        return node.built[func]


def _tail_before(x: Value, value: Value, tail: int) -> int | None:
    """The dims of 1 behind the columns of x, of which a reshape only adds or drops some."""
    kept = tail + len(x.shape) - len(value.shape)
    if kept < 0 or any(extent != 1 for extent in x.shape[len(x.shape) - kept :]):
        return None
    same = x.shape[: len(x.shape) - kept] == value.shape[: len(value.shape) - tail]
    return kept if same else None


def does_the_same(one: Func, other: Func) -> bool:
    """Whether two bodies compute the same, whatever their values are called."""
    return _steps(one) == _steps(other)


def _steps(func: Func) -> list[object]:
    number: dict[Value, int] = {}
    for value in (*func.args, *(v for op in func.ops for v in op.results)):
        number[value] = len(number)
    steps: list[object] = [a.type for a in func.args]
    for op in func.ops:
        attributes = sorted((k, repr(v)) for k, v in op.attributes.items())
        steps.append((op.name, attributes, [number[v] for v in op.operands]))
    return [*steps, [number[v] for v in func.returns]]


def check_readers(func: Func, inside: Iterable[Op], end: Value) -> None:
    """Nothing outside of the experts may read what goes away with them, up to their end."""
    known = {*inside, end.owner}
    for op in inside:
        for value in op.results:
            if value is not end and (readers := readers_beside(func, value, known)):
                raise Refused(f"{called(value)} inside of the experts is read by {readers}")
