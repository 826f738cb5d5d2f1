"""Random cases of an op: any shape, symbols, element types; what a backend refuses is left out."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings

from fuseline.codegen.lower import emit
from fuseline.codegen.targets import Backend
from fuseline.ir.evaluate import evaluate
from fuseline.ir.layout import LayoutMap
from fuseline.ir.types import BufferType, DType
from tests.codegen.machine import Call, Machine
from tests.ir.op_cases import Case, op_cases

UNITS = {DType.F64: 1e-12, DType.F32: 4e-6, DType.BF16: 2e-2, DType.F16: 3e-3}


def close(got: torch.Tensor, want: torch.Tensor) -> bool:
    """Equal, or within a few units of the largest element (sums of other signs cancel)."""
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    if not want.dtype.is_floating_point:
        return torch.equal(got, want)
    finite = want[want.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 1.0
    unit = UNITS[DType.from_torch(want.dtype)]
    return torch.allclose(got, want, rtol=unit, atol=unit * max(scale, 1.0), equal_nan=True)


def check_op(name: str, call: Call, backend: Backend, *, examples: int, workers: int = 1) -> None:
    """Kernels give what the reference gives, buffers included, in so many cases of an op."""
    compared: list[Case] = []

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(op_cases(name))
    def check(case: Case) -> None:
        own = [a.clone() if isinstance(a, torch.Tensor) else a for a in case.arguments]
        want = evaluate(case.func.clone(), own)
        func = case.func.clone()
        if any(step.refusal for step in emit(func, LayoutMap(func), backend)):
            return
        arguments = [a for a in case.arguments if isinstance(a, torch.Tensor)]
        machine = Machine(case.func, arguments, call, backend=backend, workers=workers)
        compared.append(case)
        for value, ref in zip(case.func.returns, want, strict=True):
            assert close(machine.tensor(value), ref), case.func
        for arg, ref in zip(case.func.args, own, strict=True):
            if isinstance(arg.type, BufferType):
                assert isinstance(ref, torch.Tensor)
                assert torch.equal(machine.memory[arg], ref.contiguous())

    check()
    assert compared, "every case was refused"


__all__ = ["check_op"]
