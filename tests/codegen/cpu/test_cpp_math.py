"""The elementary functions and 16-bit conversions of the C++ includes, scalar and vector."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from fuseline.codegen.kernel import environment
from tests.codegen.cpu.harness import compile_source

# Each function in float64, and its error bound in units in the last place.
FUNCTIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], float]] = {
    "exp": (torch.exp, 1.5),
    "log": (torch.log, 1.5),
    "log1p": (torch.log1p, 3.0),
    "tanh": (torch.tanh, 2.0),
    "erf": (torch.erf, 1.5),
    "relu2": (lambda x: torch.relu(x) ** 2, 1.0),
    "softplus": (lambda x: torch.logaddexp(x, torch.zeros_like(x)), 3.5),
}
# These cancel near their zeros, in eager too: bounded absolutely, relative to the input.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu_erf": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
HALVES = {"bf16": torch.bfloat16, "f16": torch.float16}


def source() -> str:
    text = '{% include "cpp/_types.h.jinja" %}\n{% include "cpp/_vec.h.jinja" %}\n'
    text = environment().from_string(text + '{% include "cpp/_math.h.jinja" %}\n').render()
    for f in (*FUNCTIONS, *ACTIVATIONS):
        text += f"""
extern "C" void scalar_{f}(const float *x, float *y, int64_t n) {{
  for (int64_t i = 0; i < n; ++i) y[i] = fl_{f}(x[i]);
}}
extern "C" void vector_{f}(const float *x, float *y, int64_t n) {{
  for (int64_t i = 0; i + FL_VL <= n; i += FL_VL) fl_vstore(y + i, fl_{f}(fl_vload(x + i)));
}}"""
    for t in HALVES:
        text += f"""
extern "C" void scalar_to_{t}(const float *x, fl_{t} *y, int64_t n) {{
  for (int64_t i = 0; i < n; ++i) fl_store(y + i, x[i]);
}}
extern "C" void vector_to_{t}(const float *x, fl_{t} *y, int64_t n) {{
  for (int64_t i = 0; i + FL_VL <= n; i += FL_VL) fl_vstore(y + i, fl_vload(x + i));
}}
extern "C" void scalar_from_{t}(const fl_{t} *x, float *y, int64_t n) {{
  for (int64_t i = 0; i < n; ++i) y[i] = fl_load(x + i);
}}
extern "C" void vector_from_{t}(const fl_{t} *x, float *y, int64_t n) {{
  for (int64_t i = 0; i + FL_VL <= n; i += FL_VL) fl_vstore(y + i, fl_vload(x + i));
}}"""
    return text


def inputs() -> torch.Tensor:
    """Normal numbers at several scales, random bit patterns, and the special values."""
    g = torch.Generator().manual_seed(0)
    scaled = [torch.randn(1 << 14, generator=g) * s for s in (1e-3, 1.0, 5.0, 30.0, 100.0)]
    bits = torch.randint(-(2**31), 2**31 - 1, (1 << 14,), generator=g, dtype=torch.int32)
    inf, nan = float("inf"), float("nan")
    special = [0.0, -0.0, inf, -inf, nan, 88.72, 88.73, -87.5, -103.9, 1e-40, -1e-40, 1e-45]
    special += [3e38, -3e38, 0.625, -0.625, 4.0, 65504.0, 65520.0, 6e-8, 2.9e-8]
    x = torch.cat([*scaled, bits.view(torch.float32), torch.tensor(special)])
    return F.pad(x, (0, -x.numel() % 16), value=1.0)


def run(name: str, x: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    y = torch.empty(x.shape, dtype=dtype)
    entry = getattr(compile_source(source()), name)
    entry.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    entry(x.data_ptr(), y.data_ptr(), x.numel())
    return y


def assert_specials_equal(y: torch.Tensor, want: torch.Tensor) -> None:
    """NaN where NaN is due, infinities exactly."""
    assert torch.equal(y.isnan(), want.isnan())
    assert torch.equal(y[want.isinf()], want[want.isinf()])


@pytest.mark.parametrize("form", ["scalar", "vector"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_within_its_error_bound(name: str, form: str) -> None:
    function, bound = FUNCTIONS[name]
    x = inputs()
    exact = function(x.double())
    want = exact.float()
    y = run(f"{form}_{name}", x)
    assert_specials_equal(y, want)
    finite = want.isfinite()
    ulp = torch.nextafter(want.abs(), torch.tensor(float("inf"))) - want.abs()
    error = ((y.double() - exact) / ulp.double())[finite].abs()
    assert error.max() <= bound, f"{error.max()} ulp at {x[finite][error.argmax()]}"


@pytest.mark.parametrize("form", ["scalar", "vector"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_close(name: str, form: str) -> None:
    x = inputs()
    if name == "gelu_erf":  # eager's of an infinity is that of the instructions it uses
        x = torch.where(x.isinf(), 1.0, x)
    exact = ACTIVATIONS[name](x.double())
    y = run(f"{form}_{name}", x)
    # Where eager's gelu overflows, too, depends on the instructions.
    assert_specials_equal(y, exact.float() if name == "gelu_erf" else ACTIVATIONS[name](x))
    finite = exact.isfinite() & y.isfinite()
    error = ((y.double() - exact) / torch.maximum(x.double().abs(), torch.ones(())))[finite]
    assert error.abs().max() <= 2e-7


@pytest.mark.parametrize("form", ["scalar", "vector"])
@pytest.mark.parametrize("kind", HALVES)
def test_rounding_to_half_is_bit_exact(kind: str, form: str) -> None:
    x = inputs()
    want = x.to(HALVES[kind])
    y = run(f"{form}_to_{kind}", x, HALVES[kind])
    same = y.view(torch.int16) == want.view(torch.int16)
    assert (same | (y.isnan() & want.isnan())).all()


@pytest.mark.parametrize("form", ["scalar", "vector"])
@pytest.mark.parametrize("kind", HALVES)
def test_widening_is_bit_exact_for_every_pattern(kind: str, form: str) -> None:
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(HALVES[kind])
    y = run(f"{form}_from_{kind}", x)
    same = y.view(torch.int32) == x.float().view(torch.int32)
    assert (same | (y.isnan() & x.isnan())).all()
