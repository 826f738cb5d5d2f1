"""Recurrent layers, step by step over a sequence whose length is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fuseline.frontend.onnx.elementwise import add, clamp, mul, sub
from fuseline.frontend.onnx.matmul import swapped
from fuseline.frontend.onnx.node import Node
from fuseline.frontend.onnx.registry import Unsupported, onnx_op
from fuseline.ir.core import Value
from fuseline.ir.ops import pointwise as p
from fuseline.ir.ops.matmul import Matmul
from fuseline.ir.ops.view import Concat
from fuseline.ir.types import DType

LONGEST = 256
"""Steps up to which a sequence is unrolled."""

Step = Callable[[Value, "list[Value]"], "list[Value]"]


def _activation(n: Node, name: str, x: Value) -> Value:
    kinds: dict[str, type[p.Unary]] = {"Sigmoid": p.Sigmoid, "Tanh": p.Tanh, "Relu": p.Relu}
    if name not in kinds:
        raise Unsupported(f"the activation {name}")
    return n.b.add(kinds[name](x)).y


def _activations(n: Node, count: int, direction: int, default: Sequence[str]) -> list[str]:
    given = n.attr("activations")
    if given is None:
        return list(default)
    if n.attr("activation_alpha") or n.attr("activation_beta"):
        raise Unsupported("activations with parameters of their own")
    return list(given[direction * count : (direction + 1) * count])


class _Layer:
    """One direction of a layer: its weights, and the walk over the steps."""

    def __init__(self, n: Node, direction: int, gates: int) -> None:
        self.n = n
        hidden = n.attr("hidden_size")
        part = (direction, direction + 1)
        weight = n.b.slice(n.x(1), 0, *part)
        again = n.b.slice(n.x(2), 0, *part)
        self.hidden = hidden
        self.w = swapped(n, n.b.reshape(weight, weight.shape[1:]))
        self.r = swapped(n, n.b.reshape(again, again.shape[1:]))
        self.wb = self.rb = n.b.full(0, n.x(0).dtype, (gates * hidden,))
        if n.has(3):
            bias = n.b.reshape(n.b.slice(n.x(3), 0, *part), (2 * gates * hidden,))
            self.wb = n.b.slice(bias, 0, 0, gates * hidden)
            self.rb = n.b.slice(bias, 0, gates * hidden, 2 * gates * hidden)

    def product(self, x: Value, weight: Value, bias: Value) -> Value:
        """``x @ weight + bias``."""
        return add(self.n, self.n.b.add(Matmul(x, weight)).y, bias)

    def gate(self, x: Value, number: int) -> Value:
        """The columns of one gate."""
        return self.n.b.slice(
            x, x.tensor.rank - 1, number * self.hidden, (number + 1) * self.hidden
        )


def _walk(n: Node, states: int, make: Callable[[int], Step]) -> list[Value | None]:
    """All directions over all steps: Y ``[S, D, B, H]``, and the last states ``[D, B, H]``."""
    if n.attr("layout", 0):
        return _batch_first(n, states, make)
    return _time_first(n, n.x(0), states, make, lambda i: n.opt(i))


def _batch_first(n: Node, states: int, make: Callable[[int], Step]) -> list[Value | None]:
    def first(index: int) -> Value | None:
        value = n.opt(index)
        return None if value is None else n.b.permute(value, (1, 0, 2))

    y, *last = _time_first(n, n.b.permute(n.x(0), (1, 0, 2)), states, make, first)
    turned: list[Value | None] = [None if y is None else n.b.permute(y, (2, 0, 1, 3))]
    return turned + [None if v is None else n.b.permute(v, (1, 0, 2)) for v in last]


def _time_first(
    n: Node, x: Value, states: int, make: Callable[[int], Step], initial: Callable[[int], Any]
) -> list[Value | None]:
    steps, batch = x.shape[:2]
    if not isinstance(steps, int) or steps > LONGEST:
        raise Unsupported(f"a sequence of {steps} steps")
    direction = n.attr("direction", "forward")
    ways = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    hidden = n.attr("hidden_size")
    lengths = None if not n.has(4) else n.b.reshape(n.b.cast(n.x(4), DType.I64), (batch, 1))
    all_rows: list[list[Value]] = []
    ends: list[list[Value]] = []
    for number, backwards in enumerate(ways):
        state: list[Value] = []
        for index in range(states):
            given = initial(5 + index)
            zero = n.b.full(0, x.dtype, (batch, hidden))
            if given is not None:
                given = n.b.reshape(n.b.slice(given, 0, number, number + 1), (batch, hidden))
            state.append(zero if given is None else given)
        step, rows = make(number), dict[int, Value]()
        for at in reversed(range(steps)) if backwards else range(steps):
            row = n.b.reshape(n.b.slice(x, 0, at, at + 1), x.shape[1:])
            after = step(row, state)
            y = after[0]
            if lengths is not None:  # steps behind the end of a sequence change nothing
                inside = n.b.add(p.Lt(n.full(at, DType.I64), lengths)).y
                after = [
                    n.b.add(p.Where(inside, a, s)).y for a, s in zip(after, state, strict=True)
                ]
                y = n.b.add(p.Where(inside, y, n.full(0, y))).y
            state, rows[at] = after, y
        all_rows.append([rows[at] for at in range(steps)])
        ends.append(state)
    parts = [_stacked(n, [n.unsqueeze(r, [0]) for r in rows], (batch, hidden)) for rows in all_rows]
    joined = [n.unsqueeze(part, [1]) for part in parts]
    y = joined[0] if len(joined) == 1 else n.b.add(Concat(tuple(joined), axis=1)).y
    last = [
        _stacked(n, [n.unsqueeze(end[i], [0]) for end in ends], (batch, hidden))
        for i in range(states)
    ]
    return [y, *last]


def _stacked(n: Node, parts: list[Value], shape: Any) -> Value:
    if not parts:
        return n.b.full(0.0, n.x(0).dtype, (0, *shape))
    return parts[0] if len(parts) == 1 else n.b.add(Concat(tuple(parts), axis=0)).y


def _clipped(n: Node, x: Value) -> Value:
    limit = n.attr("clip")
    return x if not limit else clamp(n, x, -limit, limit)


@onnx_op("RNN", since=7)
def _rnn(n: Node) -> list[Value | None]:
    def make(number: int) -> Step:
        layer = _Layer(n, number, 1)
        (f,) = _activations(n, 1, number, ["Tanh"])

        def step(x: Value, state: list[Value]) -> list[Value]:
            total = add(
                n, layer.product(x, layer.w, layer.wb), layer.product(state[0], layer.r, layer.rb)
            )
            return [_activation(n, f, _clipped(n, total))]

        return step

    return _walk(n, 1, make)


@onnx_op("GRU", since=7)
def _gru(n: Node) -> list[Value | None]:
    """Gates in the order update, reset, hidden."""

    def make(number: int) -> Step:
        layer = _Layer(n, number, 3)
        f, g = _activations(n, 2, number, ["Sigmoid", "Tanh"])
        hidden = layer.hidden

        def step(x: Value, state: list[Value]) -> list[Value]:
            (h,) = state
            left = layer.product(x, layer.w, layer.wb)
            right = layer.product(h, layer.r, layer.rb)
            z, r = (
                _activation(n, f, _clipped(n, add(n, layer.gate(left, i), layer.gate(right, i))))
                for i in (0, 1)
            )
            if n.attr("linear_before_reset", 0):
                inner = mul(n, r, layer.gate(right, 2))
            else:
                weight = n.b.slice(layer.r, 1, 2 * hidden, 3 * hidden)
                bias = n.b.slice(layer.rb, 0, 2 * hidden, 3 * hidden)
                inner = layer.product(mul(n, r, h), weight, bias)
            new = _activation(n, g, _clipped(n, add(n, layer.gate(left, 2), inner)))
            kept = sub(n, n.full(1, z), z)
            return [add(n, mul(n, kept, new), mul(n, z, h))]

        return step

    return _walk(n, 1, make)


@onnx_op("LSTM", since=7)
def _lstm(n: Node) -> list[Value | None]:
    """Gates in the order input, output, forget, cell."""

    def make(number: int) -> Step:
        layer = _Layer(n, number, 4)
        f, g, h = _activations(n, 3, number, ["Sigmoid", "Tanh", "Tanh"])
        peepholes = _peepholes(n, number)

        def step(x: Value, state: list[Value]) -> list[Value]:
            hidden, cell = state
            total = add(
                n, layer.product(x, layer.w, layer.wb), layer.product(hidden, layer.r, layer.rb)
            )
            i, o, forget, c = (layer.gate(total, k) for k in range(4))
            if peepholes:
                i = add(n, i, mul(n, peepholes[0], cell))
                forget = add(n, forget, mul(n, peepholes[2], cell))
            i, forget = (_activation(n, f, _clipped(n, v)) for v in (i, forget))
            if n.attr("input_forget", 0):
                forget = sub(n, n.full(1, i), i)
            new = add(n, mul(n, forget, cell), mul(n, i, _activation(n, g, _clipped(n, c))))
            if peepholes:
                o = add(n, o, mul(n, peepholes[1], new))
            o = _activation(n, f, _clipped(n, o))
            return [mul(n, o, _activation(n, h, new)), new]

        return step

    return _walk(n, 2, make)


def _peepholes(n: Node, number: int) -> list[Value]:
    """Weights of the cell in the gates input, output, forget."""
    if not n.has(7):
        return []
    hidden = n.attr("hidden_size")
    row = n.b.reshape(n.b.slice(n.x(7), 0, number, number + 1), (3 * hidden,))
    return [n.b.slice(row, 0, k * hidden, (k + 1) * hidden) for k in range(3)]
