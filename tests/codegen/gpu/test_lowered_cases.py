"""Random cases of every op that is done by region, index or selection in Triton."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from fuseline.codegen import lowerings
from fuseline.codegen.gpu import lower_index, lower_pointwise, lower_select
from fuseline.codegen.lower import LOWERINGS, emit
from fuseline.ir.evaluate import evaluate
from fuseline.ir.layout import LayoutMap
from fuseline.ir.types import BufferType, DType
from tests.codegen.gpu.harness import interpreted
from tests.codegen.machine import Machine
from tests.ir.op_cases import Case, op_cases

assert lowerings.__all__, "importing them registers them"
MODULES = {m.__name__ for m in (lower_index, lower_pointwise, lower_select)}
ELSEWHERE = {"argmax", "topk"}
"""Of few dtypes and one axis, or free in which of equal elements they take: see their own tests."""

OURS = sorted(
    cls.name
    for cls, function in LOWERINGS["cuda"].items()
    if getattr(function, "__module__", "") in MODULES and cls.name not in ELSEWHERE
)
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


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_kernel_gives_what_the_reference_gives(name: str) -> None:
    compared: list[Case] = []

    @settings(
        max_examples=6,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(op_cases(name))
    def check(case: Case) -> None:
        own = [a.clone() if isinstance(a, torch.Tensor) else a for a in case.arguments]
        want = evaluate(case.func.clone(), own)
        func = case.func.clone()
        if any(step.refusal for step in emit(func, LayoutMap(func), "cuda")):
            return
        arguments = [a for a in case.arguments if isinstance(a, torch.Tensor)]
        machine = Machine(case.func, arguments, interpreted, backend="cuda")
        compared.append(case)
        for value, ref in zip(case.func.returns, want, strict=True):
            assert close(machine.tensor(value), ref), case.func
        for arg, ref in zip(case.func.args, own, strict=True):
            if isinstance(arg.type, BufferType):
                assert isinstance(ref, torch.Tensor)
                assert torch.equal(machine.memory[arg], ref.contiguous())

    check()
    assert compared, "every case was refused"
