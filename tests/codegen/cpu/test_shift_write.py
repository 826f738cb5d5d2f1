"""Windows moved on in place: by the kernel and by the lowering of the op."""

from __future__ import annotations

import pytest
import torch

from fuseline.codegen.cpu.shift_write import ShiftWriteKernel
from fuseline.ir.evaluate import evaluate
from fuseline.ir.text import parse_func
from tests.codegen.cpu.harness import build
from tests.codegen.cpu.test_lower_rows import run
from tests.codegen.oracle import DTYPES, seeded

KINDS = {**DTYPES, "i64": torch.int64, "bool": torch.bool}


@pytest.mark.parametrize("dtype", ["f32", "bf16", "i64", "bool"])
@pytest.mark.parametrize("count", [1, 3, 9])
@pytest.mark.parametrize("dense", [True, False])
def test_shift_write(dtype: str, count: int, dense: bool) -> None:
    """From a transposed source; the rows lie side by side, or apart with others in between."""
    kind, (batch, heads, rows, width) = KINDS[dtype], (2, 3, 9, 20)
    src = seeded(batch, count, heads, width, dtype=torch.float32, scale=9.0).to(kind)
    src = src.transpose(1, 2)
    memory = seeded(batch, heads, rows, width + 4, dtype=torch.float32, seed=1).to(kind)
    cache = memory[..., :width].contiguous() if dense else memory[..., :width]
    margin = memory[..., width:].clone()
    expected = torch.cat([cache[:, :, count:], src], 2)
    dims = [batch, heads, count, rows - count, width, *src.stride()[:3], *cache.stride()[:3]]
    build(ShiftWriteKernel(dtype))([src, cache], dims, nth=3)
    assert torch.equal(cache, expected)
    assert torch.equal(memory[..., width:], margin)


def test_lowering() -> None:
    """Keys of one step move the cache on; the attention reads it afterwards."""
    text = """func @f(%k: bf16[2, S, 3, 6], %c: buffer<bf16[2, 3, 9, 6]>) where S in 1..9 {
      %t = permute %k {dims = (0, 2, 1, 3)}
      shift_write %c, %t {axis = 2}
      %r = read %c
      return %r
    }"""
    arguments = [
        seeded(2, 2, 3, 6, dtype=torch.bfloat16),
        seeded(2, 3, 9, 6, dtype=torch.bfloat16, seed=1),
    ]
    own = [a.clone() for a in arguments]
    (want,) = evaluate(parse_func(text), own)
    func = parse_func(text)
    for nth in (1, 3):
        machine = run(func, arguments, nth)
        assert [step.op.name for step in machine.steps] == ["shift_write"]
        assert torch.equal(machine.tensor(func.returns[0]), want)
        assert torch.equal(machine.memory[func.args[1]], own[1])
