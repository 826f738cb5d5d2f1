"""The functions that all kernels share, over the whole range of float32.

They run interpreted, by exponentials and quotients that are as far off as a GPU's.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fuseline.codegen.gpu.kernel import TritonKernel
from fuseline.codegen.lower import Refusal
from fuseline.ir.text import parse_func
from tests.codegen.gpu.harness import interpreted, on_device
from tests.codegen.gpu.interpreter import interpreter
from tests.codegen.gpu.region_harness import planned

ATOL, RTOL = 1e-5, 1.3e-6
LARGEST = torch.finfo(torch.float32).max
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp %x": torch.exp,
    "log %x": torch.log,
    "log1p %x": torch.log1p,
    "tanh %x": torch.tanh,
    "erf %x": torch.erf,
    "sigmoid %x": torch.sigmoid,
    "silu %x": F.silu,
    "softplus %x": F.softplus,
    "gelu %x": F.gelu,
    'gelu %x {approximate = "tanh"}': lambda x: F.gelu(x, approximate="tanh"),
    "reciprocal %x": torch.reciprocal,
}


def everything() -> Tensor:
    """Every exponent and sign, denormals, where functions turn, infinities and no numbers."""
    bits = torch.arange(0, 0x7F800000, 0x000E38E3, dtype=torch.int64).to(torch.int32)
    sizes = bits.view(torch.float32)
    near = torch.linspace(-120.0, 120.0, 1601)
    fine = torch.linspace(-1.5, 1.5, 601)
    odd = torch.tensor([0.0, 0.625, 1.0, 88.72, 88.73, 87.34, 103.9, 104.1, LARGEST, 1e-45])
    odd = torch.cat([odd, torch.tensor([float("inf"), float("nan")])])
    return torch.cat([sizes, -sizes, near, fine, odd, -odd])


def result(text: str, *operands: Tensor) -> Tensor:
    """What the kernel of one op gives."""
    names = [f"%{n}: f32[{operands[0].numel()}]" for n in "xz"[: len(operands)]]
    func = parse_func(f"func @f({', '.join(names)}) {{\n%y = {text}\nreturn %y\n}}")
    made = planned(func)
    assert not isinstance(made, Refusal)
    (launch,) = made
    kernel, y = launch.kernel, torch.empty_like(operands[0])
    assert isinstance(kernel, TritonKernel)
    grid = [int(extent) for extent in launch.grid]
    if on_device():
        interpreted(launch, [*operands, y], [], grid)
    else:
        interpreter().run(kernel.symbol, kernel.render(), [*operands, y], [], grid, rough=True)
    return y


def check(got: Tensor, want: Tensor) -> None:
    """Within the tolerance; infinite where float32 ends, and no number where there is none."""
    torch.testing.assert_close(got.isnan(), want.isnan())
    beyond = want.abs() * (1 + RTOL) >= LARGEST
    finite = ~want.isnan() & ~beyond
    assert bool((got[beyond].abs() >= LARGEST * (1 - RTOL)).all())
    assert bool((got[beyond].sign() == want[beyond].sign()).all())
    torch.testing.assert_close(got[finite].double(), want[finite], rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("text", FUNCTIONS)
def test_functions_over_the_whole_range(text: str) -> None:
    x = everything()
    check(result(text, x), FUNCTIONS[text](x.double()))


def test_exponentials_of_small_numbers_keep_their_digits() -> None:
    """A difference of a few units shows where results are small: a softmax divides by them."""
    x = torch.linspace(-87.0, 88.0, 5003)
    want = torch.exp(x.double())
    assert float(((result("exp %x", x).double() - want) / want).abs().max()) < RTOL


def test_quotients_are_those_of_ieee() -> None:
    """Bit for bit, denormals, infinities and zeros too, though a GPU's quick quotient is not."""
    x, generator = everything(), torch.Generator().manual_seed(1)
    z = x[torch.randperm(x.numel(), generator=generator)]
    assert torch.equal(result("div %x, %z", x, z).nan_to_num(7.5), (x / z).nan_to_num(7.5))
