"""raise-attention: random masks, of torch's op and of a softmax that is spelled out."""

from __future__ import annotations

import math

import pytest
import torch

from fuseline.ir.core import Func, Value
from fuseline.ir.evaluate import evaluate
from fuseline.ir.ops.create import Full
from fuseline.ir.ops.matmul import Matmul, Sdpa
from fuseline.ir.ops.pointwise import Add, Where
from fuseline.ir.ops.raised import Attention
from fuseline.ir.ops.reduce import Softmax
from fuseline.ir.ops.view import Permute
from fuseline.ir.types import Dim, DType, TensorType
from fuseline.passes.cse import Cse
from fuseline.passes.dce import Dce
from fuseline.passes.manager import PassManager
from fuseline.passes.raise_attention import RaiseAttention
from tests.passes.masks.random_masks import MaskMaker, MaskProgram


def _operands(program: MaskProgram) -> tuple[Value, Value, Value]:
    """q with four heads, k and v with the same, of the program's sizes."""

    def argument(name: str, length: Dim, width: int) -> Value:
        kind = TensorType(DType.F32, (program.batch, 4, length, width))
        return program.func.add_arg(kind, name)

    return (
        argument("q", program.queries, 8),
        argument("k", program.keys, 8),
        argument("v", program.keys, 6),
    )


def _run_both(program: MaskProgram, seed: int) -> tuple[Func, torch.Tensor, torch.Tensor]:
    """The program as it is and raised, on the same arguments."""
    raised = program.func.clone()
    PassManager([RaiseAttention(), Cse(), Dce()], check=True).run(raised)
    assert sum(isinstance(op, Attention) for op in raised.ops) == 1
    arguments = program.arguments(seed)
    (want,) = evaluate(program.func, arguments, binding=program.sizes)
    (got,) = evaluate(raised, arguments, binding=program.sizes)
    return raised, want, got


@pytest.mark.parametrize("seed", range(60))
def test_random_masks_of_sdpa(seed: int) -> None:
    program = MaskMaker(seed).program()
    q, k, v = _operands(program)
    y = program.func.append(Sdpa(q, k, v, program.mask, scale=0.5)).y
    program.func.set_returns([y])
    _, want, got = _run_both(program, seed)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1.3e-6)


@pytest.mark.parametrize("fill", [-math.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("seed", range(60))
def test_random_masks_of_a_spelled_out_softmax(seed: int, fill: float) -> None:
    """Rows without a key: NaN becomes zero where the fill is -inf, and a mean stays a mean."""
    program = MaskMaker(seed).program()
    func = program.func
    q, k, v = _operands(program)
    scores = func.append(Matmul(q, func.append(Permute(k, dims=(0, 1, 3, 2))).y)).y
    hidden = func.append(Full(value=fill, dtype=DType.F32)).y
    if seed % 2:
        zero = func.append(Full(value=0.0, dtype=DType.F32)).y
        mask = func.append(Where(program.mask, zero, hidden)).y
        scores = func.append(Add(scores, mask)).y
    else:
        scores = func.append(Where(program.mask, scores, hidden)).y
    weights = func.append(Softmax(scores, axis=3)).y
    func.set_returns([func.append(Matmul(weights, v)).y])
    _, want, got = _run_both(program, seed)
    if fill == -math.inf:
        want = want.nan_to_num(0.0)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1.3e-6)
