"""Random mixtures of experts, for the tests of every target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fuseline.ir.core import Func, Value
from fuseline.ir.layout import Layout, LayoutMap
from fuseline.ir.ops.create import Full
from fuseline.ir.ops.experts import Experts, Moe
from fuseline.ir.ops.pointwise import Add, Gelu, Maximum, Minimum, Mul, Relu, Sigmoid, Silu
from fuseline.ir.types import DType, TensorType

KINDS = {"f32": DType.F32, "bf16": DType.BF16, "f16": DType.F16}


def swiglu(dtype: DType, width: int) -> Func:
    """``silu(gate) * up``."""
    body, (gate, up) = _args(dtype, width, 2)
    body.set_returns([body.append(Mul(body.append(Silu(gate)).y, up)).y])
    return body


def geglu(dtype: DType, width: int) -> Func:
    """``(gelu_tanh(gate) + gelu(up)) * up``."""
    body, (gate, up) = _args(dtype, width, 2)
    both = Add(body.append(Gelu(gate, approximate="tanh")).y, body.append(Gelu(up)).y)
    body.set_returns([body.append(Mul(body.append(both).y, up)).y])
    return body


def squared_relu(dtype: DType, width: int) -> Func:
    """``relu(x) ** 2``."""
    body, (x,) = _args(dtype, width, 1)
    positive = body.append(Relu(x)).y
    body.set_returns([body.append(Mul(positive, positive)).y])
    return body


def clamped_swiglu(dtype: DType, width: int) -> Func:
    """As gpt-oss has it: ``(up + 1) * gate * sigmoid(1.702 gate)``, both clamped."""
    body, (gate, up) = _args(dtype, width, 2)

    def constant(value: float) -> Value:
        return body.append(Full(shape=(), value=value, dtype=DType.F32)).y

    limit, lowest = constant(0.75), constant(-0.75)
    gate = body.append(Minimum(gate, limit)).y
    up = body.append(Maximum(body.append(Minimum(up, limit)).y, lowest)).y
    share = body.append(Sigmoid(body.append(Mul(gate, constant(1.702))).y)).y
    glu = body.append(Mul(gate, share)).y
    more = body.append(Add(up, constant(1.0))).y
    body.set_returns([body.append(Mul(more, glu)).y])
    return body


def _args(dtype: DType, width: int, count: int) -> tuple[Func, list[Value]]:
    body = Func("body")
    return body, [body.add_arg(TensorType(dtype, (width,)), f"x{i}") for i in range(count)]


@dataclass
class Mixture:
    """A mixture of experts: the op's fields in short, and seeded operands for any tokens.

    ``form`` says how the matrices are given: packed, apart, or one by one (each), whole or halves.
    ``gap`` elements lie between rows of x, ``shared`` is the width of a shared branch.
    """

    experts: int = 5
    identities: int = 0
    top: int = 2
    hidden: int = 40
    inner: int = 24
    out: int = 40
    dtype: str = "f32"
    route: str = "f32"
    result: str = ""
    form: str = "packed"
    body: Callable[[DType, int], Func] = swiglu
    gated: bool = True
    interleaved: bool = False
    transposed: bool = False
    down_transposed: bool | None = None
    bias: bool = False
    round_bias: bool = True
    weigh: str = "output"
    combine: str = "slots"
    shared: int = 0
    shared_gate: str = ""
    shared_body: Callable[[DType, int], Func] = swiglu
    routed_factor: float = 1.0
    factor: float = 1.0
    gap: int = 3

    def op(self, tokens: int) -> tuple[Func, LayoutMap, Experts]:
        """The op over arguments, the packed ones one behind the other."""
        func, kind, route = Func("f"), KINDS[self.dtype], KINDS[self.route]

        def arg(dtype: DType, *shape: int) -> Value:
            return func.add_arg(TensorType(dtype, shape), f"a{len(func.args)}")

        sides = 1 + self.gated
        x = arg(kind, tokens, self.hidden)
        fields: dict[str, Any] = {
            "x": x,
            "indices": arg(DType.I64, tokens, self.top),
            "weights": arg(route, tokens, self.top),
            "up": [arg(kind, *shape) for shape in self.matrices(sides * self.inner, self.hidden)],
            "down": [arg(kind, *shape) for shape in self.matrices(self.out, self.inner, down=True)],
            "up_bias": arg(kind, self.experts, sides * self.inner) if self.bias else None,
            "down_bias": arg(kind, self.experts, self.out) if self.bias else None,
            "experts": self.experts,
            "identities": self.identities,
            "body": self.body(kind, self.inner),
            "gated": self.gated,
            "interleaved": self.interleaved,
            "transposed": self.transposed,
            "down_transposed": self.down_transposed,
            "round_bias": self.round_bias,
            "weigh": self.weigh,
            "combine": self.combine,
            "dtype": KINDS[self.result or self.dtype],
        }
        if self.shared:
            body = self.shared_body(kind, self.shared)
            gate = KINDS[self.shared_gate] if self.shared_gate else None
            fields |= {
                "shared_up": [arg(kind, self.shared, self.hidden) for _ in body.args],
                "shared_down": arg(kind, self.out, self.shared),
                "shared_gate": None if gate is None else arg(gate, tokens, 1),
                "shared_body": body,
                "routed_factor": self.routed_factor,
                "factor": self.factor,
            }
        op = func.append((Moe if self.shared else Experts)(**fields))
        func.set_returns([op.y])
        return func, LayoutMap(func, {x: Layout(0, (self.hidden + self.gap, 1))}), op

    def matrices(self, rows: int, columns: int, *, down: bool = False) -> list[tuple[int, ...]]:
        """The shapes of the matrices of up or of down."""
        parts = 1 + (self.gated and "apart" in self.form and not down)
        sizes = (rows // parts, columns)
        apart = down and self.down_transposed is not None
        sizes = sizes[::-1] if (self.down_transposed if apart else self.transposed) else sizes
        if "each" in self.form:
            return [sizes] * (parts * self.experts)
        return [(self.experts, *sizes)] * parts

    def arguments(self, func: Func, tokens: int, *, seed: int = 0) -> list[Tensor]:
        """Operands; every weight so large that all rows count."""
        g = torch.Generator().manual_seed(seed)
        found: list[Tensor] = []
        for i, value in enumerate(func.args):
            shape = [int(d) for d in value.shape if isinstance(d, int)]
            if i == 1:
                picks = torch.rand(tokens, self.experts + self.identities, generator=g).argsort(-1)
                found.append(picks[:, : self.top].contiguous())
                continue
            t = torch.randn(shape, generator=g)
            if i == 0:
                t = torch.randn(tokens, self.hidden + self.gap, generator=g)[:, : self.hidden]
            if i == 2:
                t = t.abs() / self.top
            elif i > 2 and len(shape) > 1 and shape[-1] > 1:
                t = t * shape[-2 if self.transposed and len(shape) == 3 else -1] ** -0.5
            dtype = value.dtype.torch
            if i == 0:
                kept = torch.zeros(tokens, self.hidden + self.gap, dtype=dtype)
                kept[:, : self.hidden] = t.to(dtype)
                found.append(kept[:, : self.hidden])
            else:
                found.append(t.to(dtype))
        return found

    @staticmethod
    def packed(op: Experts, func: Func, arguments: Sequence[Tensor]) -> list[Tensor]:
        """The arguments, those of a group as views of one block (as the program packs them)."""
        memory = dict(zip(func.args, arguments, strict=True))
        groups = [op.up, op.down, op.shared_up if isinstance(op, Moe) else ()]
        for group in groups:
            block = torch.cat([memory[v].reshape(-1) for v in group]) if group else torch.empty(0)
            at = 0
            for v in group:
                size = memory[v].numel()
                memory[v] = block[at : at + size].view(memory[v].shape)
                at += size
        return [memory[v] for v in func.args]


FORMS: list[Any] = [
    pytest.param({"hidden": 37, "inner": 131, "out": 53, "shared": 9}, id="odd"),
    pytest.param({"hidden": 1, "inner": 1, "out": 1}, id="ones"),
    pytest.param({"experts": 1, "top": 1, "shared": 24}, id="one expert"),
    pytest.param({"experts": 4, "top": 4, "combine": "experts"}, id="every expert"),
    pytest.param({"experts": 50, "top": 7, "out": 32}, id="many experts"),
    pytest.param({"form": "apart"}, id="apart"),
    pytest.param({"form": "each"}, id="one by one"),
    pytest.param({"form": "each apart", "bias": True}, id="one by one, apart"),
    pytest.param({"gated": False, "body": squared_relu}, id="ungated"),
    pytest.param({"interleaved": True, "bias": True}, id="interleaved"),
    pytest.param({"bias": True, "round_bias": False}, id="bias"),
    pytest.param({"bias": True, "round_bias": False, "body": geglu}, id="bias and geglu"),
    pytest.param({"weigh": "input", "combine": "experts"}, id="weighed input"),
    pytest.param({"combine": "in_turn", "out": 150, "shared": 16}, id="in turn"),
    pytest.param({"identities": 3, "top": 5, "combine": "in_turn"}, id="x itself"),
    pytest.param({"identities": 2, "top": 4, "shared": 9, "weigh": "input"}, id="x weighed"),
    pytest.param({"identities": 4, "experts": 1, "combine": "experts"}, id="x mostly"),
    pytest.param({"result": "f32", "route": "f32"}, id="f32 result"),
    pytest.param({"shared": 17, "shared_gate": "same", "factor": 0.5}, id="shared gate"),
    pytest.param({"shared": 17, "shared_gate": "f32"}, id="shared gate in float32"),
    pytest.param({"shared": 24, "shared_gate": "same"}, id="shared like an expert"),
    pytest.param({"shared": 17, "routed_factor": 2.5, "factor": 0.3}, id="factors"),
    pytest.param(
        {"shared": 40, "gated": False, "body": squared_relu, "factor": 2.0}, id="other shared"
    ),
]
TRANSPOSED: list[Any] = [
    pytest.param({}, id="packed"),
    pytest.param({"form": "apart", "shared": 9}, id="apart"),
    pytest.param({"form": "each apart"}, id="one by one, apart"),
    pytest.param(
        {"interleaved": True, "bias": True, "round_bias": False, "body": clamped_swiglu},
        id="interleaved",
    ),
    pytest.param({"hidden": 301, "inner": 131, "out": 121, "experts": 2, "top": 1}, id="odd"),
    pytest.param({"down_transposed": False, "out": 37, "shared": 9}, id="up alone"),
    pytest.param({"transposed": False, "down_transposed": True, "out": 37}, id="down alone"),
]


def fields_of(form: dict[str, Any], dtype: str, **fields: Any) -> dict[str, Any]:
    """The fields of a mixture of this form, whose floats are all of a dtype unless told."""
    given: dict[str, Any] = {"dtype": dtype, "route": dtype} | fields | form
    return given | ({"shared_gate": dtype} if form.get("shared_gate") == "same" else {})
