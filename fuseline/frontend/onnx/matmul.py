"""Matrix products."""

from __future__ import annotations

from collections.abc import Sequence

from fuseline.frontend.onnx.elementwise import add, mul, sub
from fuseline.frontend.onnx.node import Node
from fuseline.frontend.onnx.registry import Unsupported, onnx_op
from fuseline.frontend.onnx.sdpa import sdpa
from fuseline.ir.core import Value
from fuseline.ir.ops.matmul import Linear, Matmul
from fuseline.ir.types import Dim, DType, TensorType, same


def product_of(n: Node, lhs: Value, rhs: Value) -> Value:
    """``lhs @ rhs`` as numpy has it, for 1-d operands too."""
    row, column = lhs.tensor.rank == 1, rhs.tensor.rank == 1
    if row:
        lhs = n.unsqueeze(lhs, [0])
    if column:
        rhs = n.unsqueeze(rhs, [1])
    y = n.b.add(Matmul(lhs, rhs)).y
    shape = list(y.shape)
    if column:
        shape.pop()
    if row:
        shape.pop(-1 if column else -2)
    return n.b.reshape(y, shape)


def swapped(n: Node, x: Value) -> Value:
    """x with its last two dims swapped."""
    order = list(range(x.tensor.rank))
    order[-2:] = order[:-3:-1]
    return n.b.permute(x, order)


@onnx_op("MatMul")
def _matmul(n: Node) -> Value:
    weight = n.turned(1)
    if weight is not None and n.x(0).tensor.rank >= 2 and same(n.x(0).shape[-1], weight.shape[1]):
        return n.b.add(Linear(n.x(0), weight, None)).y
    lhs, rhs = n.x(0), n.x(1)
    return sdpa(n.b, lhs, rhs) or product_of(n, lhs, rhs)


@onnx_op("Gemm", since=7)
def _gemm(n: Node) -> Value:
    lhs, rhs, term = n.x(0), n.x(1), n.opt(2)
    alpha, beta = n.attr("alpha", 1.0), n.attr("beta", 1.0)
    lhs = swapped(n, lhs) if n.attr("transA", 0) else lhs
    turned = None if n.attr("transB", 0) else n.turned(1)
    weight = rhs if n.attr("transB", 0) else turned or swapped(n, rhs)
    biased = term is not None and beta == 1 and term.shape == weight.shape[:1]
    if alpha == 1 and lhs.dtype.is_float and (term is None or biased):
        return n.b.add(Linear(lhs, weight, term)).y
    y = n.b.add(Matmul(lhs, swapped(n, weight))).y
    y = y if alpha == 1 else mul(n, y, alpha)
    if term is None or beta == 0:
        return y
    return add(n, y, term if beta == 1 else mul(n, term, beta))


@onnx_op("MatMulInteger")
def _matmul_integer(n: Node) -> Value:
    lhs, rhs = (_shifted(n, i, i + 2, row=not i) for i in (0, 1))
    return product_of(n, lhs, rhs)


def _shifted(n: Node, index: int, zero: int, *, row: bool) -> Value:
    """An integer operand as i32, less its zero point: one for each row of the left operand, or for
    each column of the right one.
    """
    x = n.b.cast(n.x(index), DType.I32)
    if not n.has(zero):
        return x
    point = n.b.cast(n.x(zero), DType.I32)
    if point.tensor.rank == 1 and row and point.shape[0] != 1:
        point = n.unsqueeze(point, [1])
    return sub(n, x, point)


@onnx_op("Det", since=11)
def _det(n: Node) -> Value:
    x = n.x()
    return n.call("linalg_det.default", x, kind=x.tensor.with_shape(x.shape[:-2]))


# -- einsum ---------------------------------------------------------------------------------


@onnx_op("Einsum")
def _einsum(n: Node) -> Value:
    equation = "".join(n.attr("equation").split())
    xs = n.xs()
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    sizes: dict[str, Dim] = {}
    wide: list[Dim] = []
    for term, x in zip(terms, xs, strict=True):
        _read_term(term, x, sizes, wide)
    if not arrow:
        once = sorted(c for c in sizes if left.count(c) == 1)
        right = ("..." if "..." in left else "") + "".join(once)
    before, dots, after = right.partition("...")
    shape = [*(sizes[c] for c in before), *(wide if dots else ()), *(sizes[c] for c in after)]
    two = _as_product(n, terms, right, xs)
    if two is not None:
        return two
    kind = TensorType(xs[0].dtype, tuple(shape))
    return n.call("einsum.default", f"{left}->{right}", xs, kind=kind)


def _read_term(term: str, x: Value, sizes: dict[str, Dim], wide: list[Dim]) -> None:
    """The size of each letter of one operand, and of what ``...`` stands for."""
    before, dots, after = term.partition("...")
    rank = x.tensor.rank
    ends = rank - len(after)
    letters = [*zip(before, x.shape, strict=False), *zip(after, x.shape[ends:], strict=True)]
    for letter, size in letters:
        if sizes.get(letter, 1) == 1:
            sizes[letter] = size
    if dots:
        found = list(x.shape[len(before) : ends])
        wide[:0] = found[: max(len(found) - len(wide), 0)]
        for place in range(1, min(len(found), len(wide)) + 1):
            if wide[-place] == 1:
                wide[-place] = found[-place]
    elif rank != len(before):
        raise Unsupported(f"{term} for {x.type}")


def _as_product(n: Node, terms: Sequence[str], right: str, xs: Sequence[Value]) -> Value | None:
    """Two operands with shared batch letters and one letter summed over, as a matmul; else None."""
    if len(terms) != 2 or any("." in t or len(set(t)) != len(t) for t in (*terms, right)):
        return None
    one, other = terms
    batch = [c for c in right if c in one and c in other]
    rows = [c for c in right if c in one and c not in other]
    columns = [c for c in right if c in other and c not in one]
    summed = [c for c in one if c in other and c not in right]
    whole = len(batch) + len(rows) + len(columns) == len(right)
    used = set(right) | set(summed)
    if not whole or set(one + other) != used or [len(rows), len(columns), len(summed)] != [1] * 3:
        return None
    lhs = n.b.permute(xs[0], [one.index(c) for c in (*batch, *rows, *summed)])
    rhs = n.b.permute(xs[1], [other.index(c) for c in (*batch, *summed, *columns)])
    y = n.b.add(Matmul(lhs, rhs)).y
    made = [*batch, *rows, *columns]
    return n.b.permute(y, [made.index(c) for c in right])


__all__ = ["product_of", "swapped"]
