"""Random mixtures of experts, run through their lowering for a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fuseline.codegen import lowerings
from fuseline.codegen.lower import WORKERS, Launch, Lowered, Scratch, lower
from fuseline.ir.evaluate import evaluate
from fuseline.ir.types import substitute
from tests.codegen.cpu.harness import Kernel, build
from tests.codegen.mixture_cases import (
    Mixture as AnyMixture,
)
from tests.codegen.mixture_cases import clamped_swiglu, squared_relu, swiglu

assert lowerings.__all__, "importing them registers them"
TOLERANCES = {"f32": (1e-5, 1.3e-6), "bf16": (1e-3, 1.6e-2), "f16": (1e-3, 1e-3)}
GUARD = 64


@dataclass
class Mixture(AnyMixture):
    """A mixture, and the kernels that were built for it."""

    kernels: dict[str, Kernel] = field(default_factory=dict[str, Kernel])

    def lowered(self, tokens: int) -> Lowered:
        """What the lowering makes of it."""
        _, layouts, op = self.op(tokens)
        return lower(op, layouts)

    def run(
        self, tokens: int, arguments: Sequence[Tensor], *, nth: int = 1, threads: bool = False
    ) -> Tensor:
        """What the launches give."""
        func, layouts, op = self.op(tokens)
        launches = lower(op, layouts)
        assert isinstance(launches, list), launches
        y = torch.full((tokens, self.out), float("nan"), dtype=op.dtype.torch)
        memory = dict(zip(func.args, self.packed(op, func, arguments), strict=True)) | {op.y: y}
        size = max(_scratch_bytes(launch, nth) for launch in launches)
        scratch = torch.full((size + GUARD,), 0xFF, dtype=torch.uint8)
        for launch in launches:
            buffers = [
                scratch if isinstance(b, Scratch) else memory[b]
                for b in launch.buffers
                if b is not None
            ]
            dims = [substitute(d, {}) for d in launch.dims]
            kernel = self.kernels.get(launch.kernel.symbol) or build(launch.kernel)
            self.kernels[launch.kernel.symbol] = kernel
            kernel(buffers, dims, nth=nth, threads=threads)
            assert (scratch[-GUARD:] == 0xFF).all(), "wrote past the end of scratch"
        return y


def _scratch_bytes(launch: Launch, nth: int) -> int:
    scratch = next(b for b in launch.buffers if isinstance(b, Scratch))
    return substitute(scratch.nbytes, {str(WORKERS): nth})


def check(
    mixture: Mixture, tokens: int, *, workers: Sequence[int] = (1, 2, 3), seed: int = 0
) -> Tensor:
    """The launches give what the op means, whatever the number of workers; the result.

    The reference runs on the same rounded operands in float32 for a 16-bit type's rounding points.
    """
    func, _, _ = mixture.op(tokens)
    arguments = mixture.arguments(func, tokens, seed=seed)
    (want,) = evaluate(func, [a.clone() for a in arguments])
    y = mixture.run(tokens, arguments, nth=workers[0])
    for nth in workers[1:]:
        assert torch.equal(mixture.run(tokens, arguments, nth=nth), y)
    absolute, relative = TOLERANCES[mixture.result or mixture.dtype]
    points = 4
    torch.testing.assert_close(
        y.double(), want.double(), atol=absolute * points, rtol=relative * points
    )
    return y


__all__ = ["Mixture", "check", "clamped_swiglu", "squared_relu", "swiglu"]
