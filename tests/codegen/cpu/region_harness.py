"""Builds the kernel of a region and runs it on tensors of any strides, beside the reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fuseline.codegen.cpu.pointwise import Planned
from fuseline.codegen.cpu.region_plan import plan
from fuseline.codegen.lower import Launch
from fuseline.ir.core import Func, Value
from fuseline.ir.evaluate import bind, evaluate
from fuseline.ir.layout import Layout, dense
from fuseline.ir.text import parse_func
from fuseline.ir.types import substitute
from tests.codegen.cpu.harness import build
from tests.codegen.machine import Call, Machine, check_results
from tests.codegen.samples import assert_close


def planned(body: Func, tensors: Sequence[Tensor], outs: Sequence[Tensor]) -> Planned:
    """The kernel for tensors that lie as these do."""
    made = plan(
        body,
        [_layout(a, t) for a, t in zip(body.args, tensors, strict=True)],
        [_layout(v, t) for v, t in zip(body.returns, outs, strict=True)],
    )
    assert not isinstance(made, str), made
    return made


def _layout(value: Value, tensor: Tensor) -> Layout:
    return dense(value.shape) if tensor.is_contiguous() else Layout(0, tuple(tensor.stride()))


def run(
    text: str | Func,
    tensors: Sequence[Tensor],
    *,
    nth: int = 1,
    outs: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """What the kernel of a body gives; results are dense unless ``outs`` are given."""
    body = parse_func(text) if isinstance(text, str) else text
    binding = bind(body, tensors)
    if outs is None:
        outs = [
            torch.empty([substitute(d, binding) for d in v.shape], dtype=v.dtype.torch)
            for v in body.returns
        ]
    made = planned(body, tensors, outs)
    for out in outs:
        out.view(torch.uint8).fill_(0x5A) if out.is_contiguous() and out.dim() else out.fill_(1)
    dims = [substitute(d, binding) for d in made.dims]
    build(made.kernel)([*(tensors[i] for i in made.operands), *outs], dims, nth=nth)
    return list(outs)


def check(
    text: str,
    tensors: Sequence[Tensor],
    *,
    exact: bool = False,
    ulps: float = 4.0,
    atol: float = 0.0,
    workers: Sequence[int] = (1, 2, 3),
    ops: Sequence[str] | None = None,
) -> None:
    """The kernel gives what the reference gives: bit for bit, or within units in the last place.

    A 16-bit result may differ by one of its own units where its float32 value lies beside the
    middle of two.
    """
    assert ops is None, "a region is one op"
    want = evaluate(parse_func(text), list(tensors))
    for nth in workers:
        for got, ref in zip(run(text, tensors, nth=nth), want, strict=True):
            assert_close(got, ref, exact=exact, ulps=ulps, atol=atol)


def native(nth: int) -> Call:
    """Runs launches with so many workers."""

    def call(
        launch: Launch, buffers: Sequence[Tensor | None], dims: Sequence[int], grid: Sequence[int]
    ) -> None:
        build(launch.kernel)(buffers, dims, nth=nth)

    return call


def check_func(
    text: str,
    arguments: Sequence[Tensor],
    *,
    exact: bool = False,
    ulps: float = 4.0,
    atol: float = 0.0,
    ops: Sequence[str] | None = None,
) -> None:
    """The launches of a func give what its reference gives, buffers included; exactly, or within
    units in the last place and ``atol``, if there is one.
    """
    func = parse_func(text)
    own = [a.clone() for a in arguments]
    want = evaluate(parse_func(text), own)
    for nth in (1, 2, 3):
        machine = Machine(func.clone(), arguments, native(nth), workers=nth)
        check_results(machine, want, own, exact=exact or not atol, ulps=ulps, atol=atol, ops=ops)
