"""Interprets the kernel of a region on tensors of any strides, beside the reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fuseline.codegen.gpu.region_plan import launches
from fuseline.codegen.lower import Launch, Refusal
from fuseline.codegen.points import Points
from fuseline.ir.core import Func, Value
from fuseline.ir.evaluate import bind, evaluate
from fuseline.ir.layout import Layout, LayoutMap, dense
from fuseline.ir.text import parse_func
from fuseline.ir.types import Dim, substitute
from tests.codegen.gpu.harness import configured, interpreted, run_func
from tests.codegen.machine import check_results
from tests.codegen.samples import assert_close


def planned(
    body: Func,
    operands: Sequence[Layout] = (),
    places: Sequence[Layout] = (),
    shifts: Sequence[Dim] = (),
) -> list[Launch] | Refusal:
    """The launches of a body whose operands and results lie as told, dense where nothing is."""
    read = tuple(operands) or tuple(dense(a.shape) for a in body.args)
    written = tuple(places) or tuple(dense(v.shape) for v in body.returns)
    none = tuple(shifts) or (0,) * len(body.returns)
    points = Points(body, tuple(body.args), tuple(body.returns), read, written, none, 0)
    return launches([points], LayoutMap(body, dict(zip(body.args, read, strict=True))))


def _layout(value: Value, tensor: Tensor) -> Layout:
    return dense(value.shape) if tensor.is_contiguous() else Layout(0, tuple(tensor.stride()))


def run(
    text: str, tensors: Sequence[Tensor], *, outs: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """What the kernel of a body gives; results are dense unless ``outs`` are given."""
    body = parse_func(text)
    binding = bind(body, tensors)
    if outs is None:
        outs = [
            torch.empty([substitute(d, binding) for d in v.shape], dtype=v.dtype.torch)
            for v in body.returns
        ]
        for out in outs:
            out.reshape(-1).view(torch.uint8).fill_(0x5A)
    made = planned(
        body,
        [_layout(a, t) for a, t in zip(body.args, tensors, strict=True)],
        [_layout(v, t) for v, t in zip(body.returns, outs, strict=True)],
    )
    assert not isinstance(made, Refusal), made.reason
    memory = dict(zip((*body.args, *body.returns), (*tensors, *outs), strict=False))
    run_launches(made, memory, binding)
    return list(outs)


def run_launches(
    made: Sequence[Launch], memory: dict[Value, Tensor], binding: dict[str, int]
) -> None:
    """Run those launches that are for these sizes."""
    for each in made:
        if each.when is not None:
            value, low, high = each.when
            size = substitute(value, binding)
            if size < low or (high is not None and size > high):
                continue
        buffers = [memory[b] if isinstance(b, Value) else None for b in each.buffers]
        dims = [substitute(d, binding) for d in each.dims]
        launch = configured(each)
        interpreted(launch, buffers, dims, [substitute(d, binding) for d in launch.grid])


def check(
    text: str,
    tensors: Sequence[Tensor],
    *,
    exact: bool = False,
    ulps: float = 4.0,
    atol: float = 0.0,
    ops: Sequence[str] | None = None,
) -> None:
    """The kernel gives what the reference gives: bit for bit, or within units in the last place.

    A 16-bit result may differ by one of its own units where its float32 value lies beside the
    middle of two.
    """
    assert ops is None, "a region is one op"
    want = evaluate(parse_func(text), list(tensors))
    for got, ref in zip(run(text, tensors), want, strict=True):
        assert_close(got, ref, exact=exact, ulps=ulps, atol=atol)


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
    own = [a.clone() for a in arguments]
    want = evaluate(parse_func(text), own)
    machine = run_func(parse_func(text), arguments)
    check_results(machine, want, own, exact=exact or not atol, ulps=ulps, atol=atol, ops=ops)
