"""Random operands for linear kernels, the float64 oracle, and a run of a kernel on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import pytest
import torch
import torch.nn.functional as F

from fuseline.codegen.cpu.linear import Activation, LinearKernel
from tests.codegen.cpu.harness import Kernel, build

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
MOST_DTYPES = ["f32", "bf16", pytest.param("f16", marks=pytest.mark.slow)]
TOLERANCES = {"f32": (1e-5, 1.3e-6), "bf16": (1e-3, 1.6e-2), "f16": (1e-3, 1e-3)}
GUARD = 7.0  # what lies in the gaps between the rows of y


@dataclass(frozen=True)
class Case:
    """The operands of one product."""

    x: torch.Tensor
    w: torch.Tensor
    bias: torch.Tensor | None
    residual: torch.Tensor | None

    @classmethod
    def make(cls, kernel: LinearKernel, tokens: int, *, gap: int = 3) -> Case:
        """Seeded operands; rows of x and residual lie ``gap`` elements apart."""
        g = torch.Generator().manual_seed(1000 * tokens + kernel.k)
        rows = kernel.n * (2 if kernel.gated else 1)
        weight = DTYPES[kernel.weight_dtype]

        def randn(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=g)

        x = randn(tokens, kernel.k + gap).to(DTYPES[kernel.x_dtype])[:, : kernel.k]
        residual = randn(tokens, kernel.n + gap).to(DTYPES[kernel.dtype])[:, : kernel.n]
        return cls(
            x,
            (randn(rows, kernel.k) * kernel.k**-0.5).to(weight),
            randn(rows).to(weight) if kernel.bias else None,
            residual if kernel.residual else None,
        )


Function: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

ACTIVATIONS: dict[Activation, Function] = {
    "silu": F.silu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_erf": F.gelu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
}


def oracle(kernel: LinearKernel, case: Case) -> torch.Tensor:
    """The result in float64, rounded where the kernel rounds."""

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return x.to(DTYPES[kernel.dtype]).double()

    bias = None if case.bias is None else case.bias.double()
    p = rounded(F.linear(case.x.double(), case.w.double(), bias))
    up = p[:, kernel.n :]
    if kernel.activation is not None:
        p = rounded(ACTIVATIONS[kernel.activation](p[:, : kernel.n]))
    if kernel.gated:
        p = rounded(p * up)
    if case.residual is not None:
        p = rounded(case.residual.double() + p)
    return p.to(DTYPES[kernel.out_dtype]).double()


def run(
    kernel: LinearKernel,
    case: Case,
    *,
    nth: int = 1,
    built: Kernel | None = None,
    threads: bool = False,
    sgemm: bool = True,
) -> torch.Tensor:
    """The kernel's result; y rows have gaps and scratch an end, which must not be written."""
    tokens = len(case.x)
    dtype = DTYPES[kernel.out_dtype]
    ys = [torch.full((tokens, width + 2), GUARD, dtype=dtype) for width in kernel.outputs]
    size = kernel.scratch_bytes(tokens, nth)
    assert isinstance(size, int)
    scratch = torch.full((size // 4 + 16,), float("nan"))
    optional = [t for t in (case.bias, case.residual) if t is not None]
    strides = [case.x.stride(0), *(t.stride(0) for t in (case.residual,) if t is not None)]
    w = case.w.T.contiguous() if kernel.columns else case.w
    (built or build(kernel))(
        [case.x, w, *optional, *ys, scratch],
        [tokens, *strides, *(y.stride(0) for y in ys)],
        nth=nth,
        threads=threads,
        sgemm=sgemm,
    )
    assert all((y[:, -2:] == GUARD).all() for y in ys), "wrote past the end of a row"
    assert scratch[-16:].isnan().all(), "wrote past the end of scratch"
    return torch.cat([y[:, :-2] for y in ys], dim=1)


def check(kernel: LinearKernel, case: Case, y: torch.Tensor) -> None:
    """Close to the oracle: the tolerance of the dtype for each rounding point."""
    absolute, relative = TOLERANCES[kernel.dtype]
    points = 1 + (kernel.activation is not None) + kernel.gated + kernel.residual
    torch.testing.assert_close(
        y.double(), oracle(kernel, case), atol=absolute * points, rtol=relative * points
    )
