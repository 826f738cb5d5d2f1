"""What stands for the device: threads that exchange values, faults that are caught, conversions."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fuseline.codegen.gpu.cuda import CudaKernel
from tests.codegen.gpu.host import host


@dataclass(frozen=True)
class Snippet(CudaKernel):
    """The body of a kernel that reads ``x`` and writes ``y``, both of one type."""

    family = "snippet"

    body: str
    dtype: str = "f32"

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        return ("x", self.dtype), ("y", self.dtype)

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        return (("n", "i32"),)

    @property
    def written(self) -> tuple[str, ...]:
        return ("y",)

    def render(self) -> str:
        return f"""#include "fuseline_cuda.h"
        extern "C" __global__ void {self.symbol}({self.parameters}) {{ {self.body} }}"""


def run(body: str, x: Tensor, *, warps: int = 1, blocks: int = 1) -> Tensor:
    """What a body gives for ``x``, with one element of the result for each of x."""
    dtype = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[x.dtype]
    y = torch.full_like(x, -1.0)
    host().run(Snippet(body=body, dtype=dtype, warps=warps), [x, y], [x.numel()], [blocks, 1, 1])
    return y


WHERE = "const int i = blockIdx.x * {threads} + threadIdx.x;"


@pytest.mark.parametrize("lanes", [1, 5, 6, 8, 11, 16, 32])
def test_sums_over_lanes(lanes: int) -> None:
    """Groups lie side by side; lanes behind the last group take part, and have no sum."""
    x = torch.arange(64.0)
    y = run(f"y[threadIdx.x] = sum_lanes<{lanes}>(x[threadIdx.x]);", x, warps=2)
    groups = 32 // lanes
    for warp in range(2):
        own = x[32 * warp :][: groups * lanes].reshape(groups, lanes)
        got = y[32 * warp :][: groups * lanes].reshape(groups, lanes)
        assert torch.equal(got, own.sum(1, keepdim=True).expand_as(own))


def test_sums_over_blocks_that_follow_one_another() -> None:
    """Shared memory holds nothing of the block before."""
    x = torch.arange(192.0)
    body = f"{WHERE.format(threads=96)} y[i] = sum_block<3, 0>(x[i]) + sum_block<3, 1>(1.0f);"
    y = run(body, x, warps=3, blocks=2)
    assert torch.equal(y[:96], torch.full((96,), float(x[:96].sum()) + 96))
    assert torch.equal(y[96:], torch.full((96,), float(x[96:].sum()) + 96))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("y[threadIdx.x] = x[threadIdx.x + 1];", "heap-buffer-overflow"),
        ("y[int(threadIdx.x) - 1] = 0.0f;", "heap-buffer-overflow"),
        ("Pack<float, 4, 4> p; p.read(x + 1); y[0] = p[0];", "misaligned address"),
        ("Pack<float, 4, 4> p; p.read(x); p.write(y + 1);", "misaligned address"),
        ("if (threadIdx.x) y[0] = sum_lanes<32>(x[0]);", "waits for threads that ended"),
        ("if (threadIdx.x < 7) __syncthreads();", "waits for threads that ended"),
        ("y[0] = __shfl_xor_sync(0xff, x[0], 1);", "a shuffle of a part of the warp"),
        ("y[0] = __shfl_xor_sync(0xffffffffu, x[0], 32);", "from outside of the warp"),
    ],
)
def test_faults_end_the_run(body: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        run(body, torch.ones(32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_conversions_are_those_of_torch(dtype: torch.dtype) -> None:
    """Every number of 16 bits comes back, and what lies between rounds to nearest even."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    body = """for (int i = 2 * threadIdx.x; i < n; i += 64) {
      Pack<T, 2, 2> p, q;
      p.read(x + i);
      const float both[2] = {SCALE * p[0], SCALE * p[1]};
      q.fill(both);
      q.write(y + i);
    }""".replace("T,", "bf16," if dtype is torch.bfloat16 else "f16,")
    for scale in (1.0, 1.001953125, 0.3330078125):
        got = run(body.replace("SCALE", f"{scale}f"), every)
        want = (every.float() * scale).to(dtype)
        assert torch.equal(got.isnan(), want.isnan())
        kept = ~want.isnan()
        assert torch.equal(got[kept].view(torch.int16), want[kept].view(torch.int16))
