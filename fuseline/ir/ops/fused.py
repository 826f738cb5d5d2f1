"""Fused ops: what one kernel does. Each reference is a composition of the ops that it replaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fuseline.ir.core import (
    Cost,
    Func,
    Op,
    OpError,
    Trait,
    Value,
    attribute,
    operand,
    optional_operand,
    result,
    variadic_operand,
    variadic_result,
)
from fuseline.ir.ops.raised import (
    Activation,
    CastPoint,
    RopeStyle,
    RopeTable,
    activation_reference,
    layer_norm_reference,
    rms_norm_reference,
    rope_reference,
)
from fuseline.ir.types import (
    BufferType,
    Dim,
    DType,
    TensorType,
    dim,
    format_types,
    product,
    promote,
)


class MergedLinear(Op, name="merged_linear", traits={Trait.PURE}):
    """Sibling products of one x ``[..., K]`` by weights ``[Ni, K]``, one result ``[..., Ni]`` each.

    The weights lie one behind the other in one buffer (biases too, where present), which the
    planner brings about; each result is a column slice of one product.
    """

    x: Value = operand()
    weights: tuple[Value, ...] = variadic_operand()
    biases: tuple[Value, ...] = variadic_operand()
    ys: tuple[Value, ...] = variadic_result()

    def infer(self) -> tuple[TensorType, ...]:
        if self.biases and len(self.biases) != len(self.weights):
            raise OpError(self, f"{len(self.biases)} biases for {len(self.weights)} weights")
        for weight in self.weights:
            if weight.shape[1:] != self.x.shape[-1:]:
                raise OpError(self, f"weight {weight.type} does not fit x {self.x.type}")
        lead = self.x.shape[:-1]
        return tuple(self.x.tensor.with_shape((*lead, w.shape[0])) for w in self.weights)

    def cost(self) -> Cost:
        rows = product(self.x.shape[:-1])
        return Cost(super().cost().bytes, dim(sum(2 * rows * w.tensor.numel for w in self.weights)))

    @staticmethod
    def reference(
        x: Tensor, weights: tuple[Tensor, ...], biases: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        each = biases or (None,) * len(weights)
        return tuple(F.linear(x, w, b) for w, b in zip(weights, each, strict=True))


class GatedLinear(Op, name="gated_linear", traits={Trait.PURE}):
    """``act(x @ gate.T) * (x @ up.T)``, rounded after each product, activation and multiply.

    Gate and up ``[N, K]`` lie one behind the other in one buffer, as in `MergedLinear`.
    """

    x: Value = operand()
    gate: Value = operand()
    up: Value = operand()
    gate_bias: Value | None = optional_operand()
    up_bias: Value | None = optional_operand()
    activation: Activation = attribute(default="silu")
    y: Value = result()

    def infer(self) -> TensorType:
        if self.gate.shape != self.up.shape or self.gate.shape[1:] != self.x.shape[-1:]:
            raise OpError(self, f"gate {self.gate.type} and up {self.up.type}, x {self.x.type}")
        return self.x.tensor.with_shape((*self.x.shape[:-1], self.gate.shape[0]))

    def cost(self) -> Cost:
        return Cost(
            super().cost().bytes,
            dim(4 * product(self.x.shape[:-1]) * self.gate.tensor.numel),
        )

    @staticmethod
    def reference(
        x: Tensor,
        gate: Tensor,
        up: Tensor,
        gate_bias: Tensor | None,
        up_bias: Tensor | None,
        *,
        activation: str,
    ) -> Tensor:
        left = activation_reference(F.linear(x, gate, gate_bias), activation)
        return left * F.linear(x, up, up_bias)


class WideLinear(Op, name="wide_linear", traits={Trait.PURE}):
    """``x @ weight.T + bias`` in float32: narrow operands are widened first, and stay so in memory.

    bias is of the type of the weight ``[N, K]``; y ``[..., N]`` is f32.
    """

    x: Value = operand()
    weight: Value = operand()
    bias: Value | None = optional_operand()
    y: Value = result()

    def infer(self) -> TensorType:
        weight = self.weight.tensor
        if weight.rank != 2 or self.x.shape[-1:] != weight.shape[1:]:
            raise OpError(self, f"weight {weight} does not fit x {self.x.type}")
        if self.bias is not None and self.bias.tensor != weight.with_shape(weight.shape[:1]):
            raise OpError(self, f"bias {self.bias.type} does not fit weight {weight}")
        wide = DType.F32
        if any(not v.dtype.is_float or v.dtype is DType.F64 for v in (self.x, self.weight)):
            raise OpError(self, f"x {self.x.type} and weight {weight} do not widen to {wide}")
        return TensorType(wide, (*self.x.shape[:-1], weight.shape[0]))

    def cost(self) -> Cost:
        return Cost(
            super().cost().bytes, dim(2 * product(self.x.shape[:-1]) * self.weight.tensor.numel)
        )

    @staticmethod
    def reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float())


class LinearAdd(Op, name="linear_add", traits={Trait.PURE}):
    """``residual + (x @ weight.T + bias)``: the product is rounded before it is added."""

    x: Value = operand()
    weight: Value = operand()
    residual: Value = operand()
    bias: Value | None = optional_operand()
    y: Value = result()

    def infer(self) -> TensorType:
        shape = (*self.x.shape[:-1], self.weight.shape[0])
        if self.residual.shape != shape or self.residual.dtype != self.x.dtype:
            raise OpError(self, f"residual {self.residual.type} does not fit {self.x.type}")
        return self.residual.tensor

    def cost(self) -> Cost:
        return Cost(
            super().cost().bytes, dim(2 * product(self.x.shape[:-1]) * self.weight.tensor.numel)
        )

    @staticmethod
    def reference(x: Tensor, weight: Tensor, residual: Tensor, bias: Tensor | None) -> Tensor:
        return residual + F.linear(x, weight, bias)


class AddRmsNorm(Op, name="add_rms_norm", traits={Trait.PURE}):
    """``sum = x + residual`` (rounded), and the RMS norm of the sum; attributes as in `RmsNorm`."""

    x: Value = operand()
    residual: Value = operand()
    weight: Value | None = optional_operand()
    eps: float = attribute(default=1e-6)
    offset: float = attribute(default=0.0)
    cast: CastPoint = attribute(default="before_weight")
    sum: Value = result()
    y: Value = result()

    def infer(self) -> tuple[TensorType, TensorType]:
        kind = self.x.tensor
        if self.residual.type != self.x.type:
            raise OpError(self, f"residual {self.residual.type} does not fit x {kind}")
        if self.weight is None or self.cast == "last":
            return kind, kind
        return kind, kind.with_dtype(promote([self.weight.tensor, kind]))

    def cost(self) -> Cost:
        return Cost(super().cost().bytes, dim(5 * self.x.tensor.numel))

    @staticmethod
    def reference(
        x: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        *,
        eps: float,
        offset: float,
        cast: str,
    ) -> tuple[Tensor, Tensor]:
        total = x + residual
        return total, rms_norm_reference(total, weight, eps=eps, offset=offset, cast=cast)


class RmsNormAdd(Op, name="rms_norm_add", traits={Trait.PURE}):
    """``residual + rms_norm(x)``, the norm rounded first; attributes as in `RmsNorm`."""

    x: Value = operand()
    residual: Value = operand()
    weight: Value | None = optional_operand()
    eps: float = attribute(default=1e-6)
    offset: float = attribute(default=0.0)
    cast: CastPoint = attribute(default="before_weight")
    y: Value = result()

    def infer(self) -> TensorType:
        kind = self.x.tensor
        if self.weight is not None and self.cast == "before_weight":
            kind = kind.with_dtype(promote([self.weight.tensor, kind]))
        if self.residual.tensor != kind:
            raise OpError(self, f"residual {self.residual.type} does not fit the norm {kind}")
        return kind

    def cost(self) -> Cost:
        return Cost(super().cost().bytes, dim(5 * self.x.tensor.numel))

    @staticmethod
    def reference(
        x: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        *,
        eps: float,
        offset: float,
        cast: str,
    ) -> Tensor:
        return residual + rms_norm_reference(x, weight, eps=eps, offset=offset, cast=cast)


class SandwichNorm(Op, name="sandwich_norm", traits={Trait.PURE}):
    """``sum = residual + rms_norm(x)`` and ``y = rms_norm(sum)``: the norms around a residual add.

    The attributes ``next_*`` and the next weight are those of the second norm. All of one type.
    """

    x: Value = operand()
    residual: Value = operand()
    weight: Value | None = optional_operand()
    next_weight: Value | None = optional_operand()
    eps: float = attribute(default=1e-6)
    offset: float = attribute(default=0.0)
    cast: CastPoint = attribute(default="before_weight")
    next_eps: float = attribute(default=1e-6)
    next_offset: float = attribute(default=0.0)
    next_cast: CastPoint = attribute(default="before_weight")
    sum: Value = result()
    y: Value = result()

    def infer(self) -> tuple[TensorType, TensorType]:
        kind = self.x.tensor
        for value in (self.weight, self.next_weight):
            if value is not None and value.dtype is not kind.dtype:
                raise OpError(self, f"weight {value.type} is not of the type of x {kind}")
        if self.residual.tensor != kind:
            raise OpError(self, f"residual {self.residual.type} does not fit x {kind}")
        return kind, kind

    def cost(self) -> Cost:
        return Cost(super().cost().bytes, dim(9 * self.x.tensor.numel))

    @staticmethod
    def reference(
        x: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        next_weight: Tensor | None,
        *,
        eps: float,
        offset: float,
        cast: str,
        next_eps: float,
        next_offset: float,
        next_cast: str,
    ) -> tuple[Tensor, Tensor]:
        total = residual + rms_norm_reference(x, weight, eps=eps, offset=offset, cast=cast)
        return total, rms_norm_reference(
            total, next_weight, eps=next_eps, offset=next_offset, cast=next_cast
        )


def _norm_and_rope(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    a: dict[str, Any],
) -> Tensor:
    """Norm and rotate one of q, k ``[B, S, H, D]`` under the attributes of `QkNormRope`."""

    def norm(t: Tensor) -> Tensor:
        if a["norm"] == "none":
            return t
        flat = t.flatten(-2) if a["scope"] == "row" else t
        if a["norm"] == "rms":
            out = rms_norm_reference(flat, weight, eps=a["eps"], offset=a["offset"], cast=a["cast"])
        else:
            out = layer_norm_reference(flat, weight, bias, eps=a["eps"], cast=a["cast"])
        return out.reshape(t.shape)

    def rope(t: Tensor) -> Tensor:
        if cos is None or sin is None:
            return t
        tables = (cos.unsqueeze(-2), sin.unsqueeze(-2))
        keys = ("style", "table", "start", "width", "sign", "round")
        return rope_reference(t, *tables, **{k: a[k] for k in keys})

    y = rope(norm(x)) if a["order"] == "norm_rope" else norm(rope(x))
    return y.transpose(1, 2) if a["out"] == "bhsd" else y


class QkNormRope(Op, name="qk_norm_rope", traits={Trait.PURE}):
    """Norm and rotation of q ``[B, S, H, D]`` and k ``[B, S, Hk, D]`` in one pass over both.

    ``scope="head"`` normalises each head (weight ``[D]``, or ``[H, D]``), ``"row"`` all heads of a
    token together (weight ``[H * D]``). ``norm`` is ``rms``, ``layer`` or ``none``. cos and sin are
    ``[B, S, W]`` or ``[1, S, W]``, absent where there is no rotation; the other attributes are
    those of `Rope`. ``out="bhsd"`` gives results ``[B, H, S, D]``.
    """

    q: Value = operand()
    k: Value = operand()
    q_weight: Value | None = optional_operand()
    k_weight: Value | None = optional_operand()
    q_bias: Value | None = optional_operand()
    k_bias: Value | None = optional_operand()
    cos: Value | None = optional_operand()
    sin: Value | None = optional_operand()
    norm: Literal["rms", "layer", "none"] = attribute(default="rms")
    eps: float = attribute(default=1e-6)
    offset: float = attribute(default=0.0)
    cast: CastPoint = attribute(default="before_weight")
    scope: Literal["head", "row"] = attribute(default="head")
    order: Literal["norm_rope", "rope_norm"] = attribute(default="norm_rope")
    style: RopeStyle = attribute(default="half")
    table: RopeTable = attribute(default="full")
    start: int = attribute(default=0)
    width: int = attribute(default=0)
    sign: int = attribute(default=1)
    round: bool = attribute(default=True)
    out: Literal["bshd", "bhsd"] = attribute(default="bhsd")
    q_out: Value = result()
    k_out: Value = result()

    def infer(self) -> tuple[TensorType, ...]:
        if self.q.tensor.rank != 4 or self.k.tensor.rank != 4:
            raise OpError(self, f"q {self.q.type} and k {self.k.type} are not both [B, S, H, D]")
        if (self.cos is None) != (self.sin is None):
            raise OpError(self, "needs both cos and sin, or neither")
        return self._out(self.q), self._out(self.k)

    def _out(self, value: Value) -> TensorType:
        b, s, h, d = value.shape
        return value.tensor.with_shape((b, h, s, d) if self.out == "bhsd" else (b, s, h, d))

    def cost(self) -> Cost:
        return Cost(super().cost().bytes, dim(7 * (self.q.tensor.numel + self.k.tensor.numel)))

    @staticmethod
    def reference(
        q: Tensor,
        k: Tensor,
        q_weight: Tensor | None,
        k_weight: Tensor | None,
        q_bias: Tensor | None,
        k_bias: Tensor | None,
        cos: Tensor | None,
        sin: Tensor | None,
        **attributes: Any,
    ) -> tuple[Tensor, Tensor]:
        return (
            _norm_and_rope(q, q_weight, q_bias, cos, sin, attributes),
            _norm_and_rope(k, k_weight, k_bias, cos, sin, attributes),
        )


class QkNormRopeWrite(Op, name="qk_norm_rope_write", traits={Trait.WRITES}):
    """`QkNormRope` whose k, and v beside it, go straight into a static cache.

    v is ``[B, S, Hk, Dv]``; the caches are buffers ``[B, Hk, Smax, D]`` and ``[B, Hk, Smax, Dv]``;
    token s is written at ``index[s]`` (i64 ``[S]``). Only q is a result.
    """

    q: Value = operand()
    k: Value = operand()
    v: Value = operand()
    index: Value = operand()
    k_cache: Value = operand()
    v_cache: Value = operand()
    q_weight: Value | None = optional_operand()
    k_weight: Value | None = optional_operand()
    q_bias: Value | None = optional_operand()
    k_bias: Value | None = optional_operand()
    cos: Value | None = optional_operand()
    sin: Value | None = optional_operand()
    norm: Literal["rms", "layer", "none"] = attribute(default="rms")
    eps: float = attribute(default=1e-6)
    offset: float = attribute(default=0.0)
    cast: CastPoint = attribute(default="before_weight")
    scope: Literal["head", "row"] = attribute(default="head")
    order: Literal["norm_rope", "rope_norm"] = attribute(default="norm_rope")
    style: RopeStyle = attribute(default="half")
    table: RopeTable = attribute(default="full")
    start: int = attribute(default=0)
    width: int = attribute(default=0)
    sign: int = attribute(default=1)
    round: bool = attribute(default=True)
    out: Literal["bshd", "bhsd"] = attribute(default="bhsd")
    q_out: Value = result()

    def infer(self) -> TensorType:
        b, s, h, d = self.q.shape
        return self.q.tensor.with_shape((b, h, s, d) if self.out == "bhsd" else (b, s, h, d))

    def cost(self) -> Cost:
        read = [self.q, self.k, self.v]
        moved = sum((v.tensor.nbytes for v in read), start=0)
        return Cost(dim(2 * moved), dim(7 * (self.q.tensor.numel + self.k.tensor.numel)))

    @staticmethod
    def reference(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        index: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        q_weight: Tensor | None,
        k_weight: Tensor | None,
        q_bias: Tensor | None,
        k_bias: Tensor | None,
        cos: Tensor | None,
        sin: Tensor | None,
        **attributes: Any,
    ) -> Tensor:
        q_out = _norm_and_rope(q, q_weight, q_bias, cos, sin, attributes)
        k_out = _norm_and_rope(k, k_weight, k_bias, cos, sin, attributes | {"out": "bhsd"})
        k_cache.index_copy_(2, index.reshape(-1), k_out)
        v_cache.index_copy_(2, index.reshape(-1), v.transpose(1, 2))
        return q_out


class Pointwise(Op, name="pointwise", traits={Trait.PURE}):
    """A region of element-wise ops over broadcast operands, with at most one row reduction.

    ``body`` is a func over the operands; its returns are the results.
    """

    xs: tuple[Value, ...] = variadic_operand()
    body: Func = attribute()
    ys: tuple[Value, ...] = variadic_result()

    def infer(self) -> tuple[TensorType, ...]:
        takes = [a.type for a in self.body.args]
        if takes != [x.type for x in self.xs]:
            given = format_types(x.type for x in self.xs)
            raise OpError(self, f"operands {given}, the body takes {format_types(takes)}")
        return tuple(v.tensor for v in self.body.returns)

    def cost(self) -> Cost:
        flops: Dim = 0
        for op in self.body.ops:
            flops = dim(flops + op.cost().flops)
        return Cost(super().cost().bytes, flops)

    @staticmethod
    def reference(
        xs: tuple[Tensor, ...], *, body: Callable[[list[Tensor]], list[Tensor]]
    ) -> tuple[Tensor, ...]:
        return tuple(body(list(xs)))


class PointwiseWrite(Op, name="pointwise_write", traits={Trait.WRITES}):
    """`Pointwise` whose results replace all that buffers hold, one buffer for each result.

    What is computed for one buffer reads no other of them: none waits for the rest.
    """

    buffers: tuple[Value, ...] = variadic_operand()
    xs: tuple[Value, ...] = variadic_operand()
    body: Func = attribute()

    def infer(self) -> tuple[()]:
        takes = [a.type for a in self.body.args]
        if takes != [x.type for x in self.xs]:
            given = format_types(x.type for x in self.xs)
            raise OpError(self, f"operands {given}, the body takes {format_types(takes)}")
        gives = [v.tensor for v in self.body.returns]
        holds = [v.type.tensor for v in self.buffers if isinstance(v.type, BufferType)]
        if gives != holds or len(holds) != len(self.buffers):
            given = format_types(v.type for v in self.buffers)
            raise OpError(self, f"buffers {given}, the body gives {format_types(gives)}")
        return ()

    def cost(self) -> Cost:
        flops: Dim = 0
        for op in self.body.ops:
            flops = dim(flops + op.cost().flops)
        moved: Dim = 0
        for value in (*self.buffers, *self.xs):
            moved = dim(moved + value.tensor.nbytes)
        return Cost(moved, flops)

    @staticmethod
    def reference(
        buffers: tuple[Tensor, ...],
        xs: tuple[Tensor, ...],
        *,
        body: Callable[[list[Tensor]], list[Tensor]],
    ) -> None:
        for buffer, y in zip(buffers, body(list(xs)), strict=True):
            buffer.copy_(y)


class Copy(Op, name="copy", traits={Trait.PURE, Trait.MOVES}):
    """The same elements, dense in memory; what the planner puts before a kernel that needs that."""

    x: Value = operand()
    y: Value = result()

    def infer(self) -> TensorType:
        return self.x.tensor

    @staticmethod
    def reference(x: Tensor) -> Tensor:
        return x.clone(memory_format=torch.contiguous_format)
