"""Experts that are written down one by one, each by products with matrices of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fuseline.ir.core import Func, Op, Value
from fuseline.ir.ops.matmul import Linear
from fuseline.ir.ops.view import Concat, Reshape
from fuseline.passes.expert_body import Body, Refused, does_the_same
from fuseline.passes.merge_linears import unpackable
from fuseline.passes.wording import called


@dataclass(frozen=True)
class Product:
    """Rows by one expert's matrix ``[N, K]`` (``transposed``: ``[K, N]``), with its bias."""

    op: Op
    x: Value
    weight: Value
    bias: Value | None = None
    transposed: bool = False

    @classmethod
    def of(cls, op: Linear) -> Product:
        """The product that a linear is."""
        return cls(op, op.x, op.weight, op.bias)

    @property
    def y(self) -> Value:
        """The result."""
        return self.op.results[0]

    @property
    def width(self) -> int:
        """How many columns the result has."""
        width = self.y.shape[-1]
        if not isinstance(width, int):
            raise Refused(f"{called(self.weight)} is {self.weight.type}, of an unknown width")
        return width


@dataclass(frozen=True)
class Mlp:
    """What one expert computes: its products, and what stands between them."""

    ups: tuple[Product, ...]
    down: Product
    body: Body

    @property
    def products(self) -> tuple[Product, ...]:
        """All products, the last one behind those of gate and up."""
        return (*self.ups, self.down)


def check_alike(number: int, own: Mlp, first: Mlp) -> None:
    """An expert must do the same as the first one, by matrices like those."""
    if not does_the_same(own.body.func, first.body.func):
        raise Refused(f"the activation of expert {number} is another than that of the first")
    for mine, other in zip(own.products, first.products, strict=True):
        types = mine.weight.type == other.weight.type and mine.transposed is other.transposed
        if not types or (mine.bias is None) is not (other.bias is None):
            raise Refused(f"a weight of expert {number} is {mine.weight.type}, not as others")


def check_packable(func: Func, experts: Sequence[Mlp]) -> None:
    """Matrices that are given one by one are packed: they must be free to move."""
    for number, expert in enumerate(experts):
        for product in expert.products:
            if product.transposed:
                raise Refused(f"a weight of expert {number} by itself lies [K, N]")
            label = f"of expert {number} a weight"
            if reason := unpackable(func, product.weight, label):
                raise Refused(reason)


def stacked_biases(products: Sequence[Product], experts: int) -> Value | None:
    """The biases of all experts, ``[E, N]``, of their products in turn; None without biases."""
    given = [p.bias for p in products if p.bias is not None]
    if not given:
        return None
    if len(given) < len(products):
        raise Refused("only one of gate and up has a bias")
    width = sum(p.width for p in products) // experts
    return Reshape(Concat(tuple(given), axis=0).y, shape=(experts, width)).y
