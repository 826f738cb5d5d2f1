"""Linear products in Triton: numbers through the interpreter, and binaries of released sizes."""

from __future__ import annotations

import importlib
import itertools
import re
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fuseline.build_gpu import candidates
from fuseline.codegen.gpu.linear import LinearFinishKernel, LinearRowsKernel, LinearTileKernel
from fuseline.codegen.gpu.linear_choice import MOST_ROWS, Shape, choose_linear
from fuseline.codegen.library import LibraryKernel
from fuseline.codegen.lower import emit
from fuseline.codegen.targets import GPU_TARGETS, TARGETS, Target
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu.binary import Binary
from tests.codegen.gpu.harness import binaries, check, run_func
from tests.codegen.oracle import DTYPES, seeded

TOKENS = (1, 2, 3, 7, 17)
"""Every range of the choice has one of them."""


def weights(*shape: int, dtype: str, seed: int = 1) -> Tensor:
    """Weights whose products have a variance of about 1."""
    return seeded(*shape, dtype=torch.float32, seed=seed).mul(shape[-1] ** -0.5).to(DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", TOKENS)
def test_products_of_a_slice_with_bias_and_residual(tokens: int, dtype: str) -> None:
    text = f"""func @f(%x: {dtype}[T, 120], %w: {dtype}[19, 112], %b: {dtype}[19],
                       %t: {dtype}[T, 40]) {{
      %part = slice %x {{axis = 1, start = 8, stop = 120}}
      %y = linear %part, %w, %b
      %r = slice %t {{axis = 1, start = 3, stop = 22}}
      %z = linear_add %part, %w, %r, %b
      return %y, %z
    }}"""
    kind = DTYPES[dtype]
    arguments = [
        seeded(tokens, 120, dtype=kind),
        weights(19, 112, dtype=dtype),
        seeded(19, dtype=kind, seed=2),
        seeded(tokens, 40, dtype=kind, seed=3),
    ]
    check(text, arguments, ops=["linear", "linear_add"])


@pytest.mark.parametrize("tokens", TOKENS)
def test_siblings_share_a_kernel(tokens: int) -> None:
    text = """func @f(%x: bf16[1, T, 96], %w: bf16[27, 96], %b: bf16[27]) {
      %q = slice %w {axis = 0, start = 0, stop = 13}
      %k = slice %w {axis = 0, start = 13, stop = 20}
      %v = slice %w {axis = 0, start = 20, stop = 27}
      %c = slice %b {axis = 0, start = 0, stop = 13}
      %d = slice %b {axis = 0, start = 13, stop = 20}
      %e = slice %b {axis = 0, start = 20, stop = 27}
      %x1, %x2, %x3 = merged_linear %x, [%q, %k, %v], [%c, %d, %e]
      %z1, %z2, %z3 = merged_linear %x, [%q, %k, %v], []
      return %x1, %x2, %x3, %z1, %z2, %z3
    }"""
    kind = DTYPES["bf16"]
    x = seeded(1, tokens, 96, dtype=kind)
    check(text, [x, weights(27, 96, dtype="bf16"), seeded(27, dtype=kind, seed=2)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", TOKENS)
def test_gate_and_up(tokens: int, dtype: str) -> None:
    check_gated("silu", tokens, dtype)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "relu2"])
@pytest.mark.parametrize("tokens", [1, 17])
def test_activations_of_a_gate(tokens: int, activation: str) -> None:
    check_gated(activation, tokens, "f32")
    check_gated(activation, tokens, "bf16", bias=True)


def check_gated(activation: str, tokens: int, dtype: str, *, bias: bool = False) -> None:
    """Gate and up from one parameter, 21 columns each."""
    biases = ", %c, %d" if bias else ""
    text = f"""func @f(%x: {dtype}[T, 72], %w: {dtype}[42, 72], %b: {dtype}[42]) {{
      %gate = slice %w {{axis = 0, start = 0, stop = 21}}
      %up = slice %w {{axis = 0, start = 21, stop = 42}}
      %c = slice %b {{axis = 0, start = 0, stop = 21}}
      %d = slice %b {{axis = 0, start = 21, stop = 42}}
      %y = gated_linear %x, %gate, %up{biases} {{activation = "{activation}"}}
      return %y
    }}"""
    kind = DTYPES[dtype]
    parameters = [weights(42, 72, dtype=dtype), seeded(42, dtype=kind, seed=2)]
    check(text, [seeded(tokens, 72, dtype=kind, scale=2.0), *parameters])


@pytest.mark.parametrize(
    ("x_dtype", "w_dtype"), [("bf16", "bf16"), ("f16", "bf16"), ("bf16", "f32"), ("f32", "f16")]
)
@pytest.mark.parametrize("tokens", [1, 7, 12, 67])
def test_products_in_float32(tokens: int, x_dtype: str, w_dtype: str) -> None:
    text = f"""func @f(%x: {x_dtype}[T, 113], %w: {w_dtype}[7, 113], %b: {w_dtype}[7]) {{
      %y = wide_linear %x, %w, %b
      return %y
    }}"""
    x = seeded(tokens, 113, dtype=DTYPES[x_dtype])
    kind = DTYPES[w_dtype]
    check_wide(text, x, weights(7, 113, dtype=w_dtype), seeded(7, dtype=kind, seed=2))


def check_wide(text: str, x: Tensor, *parameters: Tensor) -> None:
    """The result is float32's: its error is far below the rounding of the operands."""
    func, arguments = parse_func(text), [x, *parameters]
    got = run_func(func, arguments).tensor(func.returns[0])
    weight, *bias = (p.double() for p in parameters)
    assert got.dtype == torch.float32
    want = F.linear(x.double(), weight, *bias)
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1.3e-6)


@pytest.mark.parametrize(("k", "n"), [(1, 1), (7, 3), (521, 2), (1025, 5), (2048, 4)])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_widths(k: int, n: int, dtype: str) -> None:
    text = f"""func @f(%x: {dtype}[T, {k}], %w: {dtype}[{n}, {k}]) {{
      %y = linear %x, %w
      return %y
    }}"""
    for tokens in (0, 1, 2, 5):
        check(text, [seeded(tokens, k, dtype=DTYPES[dtype]), weights(n, k, dtype=dtype)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 5, 17])
def test_weights_by_columns(tokens: int, dtype: str) -> None:
    text = f"""func @f(%x: {dtype}[T, 72], %w: {dtype}[72, 21], %b: {dtype}[21]) {{
      %t = permute %w {{dims = (1, 0)}}
      %y = linear %x, %t, %b
      return %y
    }}"""
    kind = DTYPES[dtype]
    w = weights(21, 72, dtype=dtype).t().contiguous()
    check(text, [seeded(tokens, 72, dtype=kind), w, seeded(21, dtype=kind, seed=2)])


def test_few_columns_of_long_rows_share_out_k() -> None:
    """Parts are added in order by a second kernel, which does all that is left."""
    text = """func @f(%x: f16[T, 6200], %w: f16[5, 6200], %r: f16[T, 5]) {
      %y = linear_add %x, %w, %r
      return %y
    }"""
    func = parse_func(text)
    (step,) = emit(func, LayoutMap(func), "cuda")
    assert any(
        isinstance(n.kernel, LinearFinishKernel) and n.kernel.splits > 1 for n in step.launches
    )
    x = seeded(4, 6200, dtype=torch.float16)
    check(text, [x, weights(5, 6200, dtype="f16"), seeded(4, 5, dtype=torch.float16, seed=2)])


def test_gate_and_up_of_few_columns_share_out_k() -> None:
    text = """func @f(%x: bf16[T, 6150], %w: bf16[10, 6150], %b: bf16[10]) {
      %gate = slice %w {axis = 0, start = 0, stop = 5}
      %up = slice %w {axis = 0, start = 5, stop = 10}
      %c = slice %b {axis = 0, start = 0, stop = 5}
      %d = slice %b {axis = 0, start = 5, stop = 10}
      %y = gated_linear %x, %gate, %up, %c, %d
      return %y
    }"""
    kind = torch.bfloat16
    check(
        text,
        [
            seeded(3, 6150, dtype=kind),
            weights(10, 6150, dtype="bf16"),
            seeded(10, dtype=kind, seed=2),
        ],
    )


def test_many_tokens_in_float32_use_large_tiles() -> None:
    text = """func @f(%x: bf16[T, 24], %w: bf16[6, 24]) {
      %y = wide_linear %x, %w
      return %y
    }"""
    check_wide(text, seeded(700, 24, dtype=torch.bfloat16), weights(6, 24, dtype="bf16"))


def test_a_known_number_of_tokens_has_one_kernel() -> None:
    func = parse_func("func @f(%x: bf16[1, 64], %w: bf16[8, 64]) { %y = linear %x, %w  return %y }")
    (step,) = emit(func, LayoutMap(func), "cuda")
    (launch,) = step.launches
    assert isinstance(launch.kernel, LinearRowsKernel)
    assert launch.when is None


def test_siblings_of_many_tokens_go_into_their_own_results() -> None:
    func = parse_func(
        """func @f(%x: bf16[40, 64], %q: bf16[8, 64], %k: bf16[4, 64]) {
          %a, %b = merged_linear %x, [%q, %k], []
          return %a, %b
        }"""
    )
    (step,) = emit(func, LayoutMap(func), "cuda")
    assert [type(launch.kernel) for launch in step.launches] == [LibraryKernel, LibraryKernel]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "func @f(%x: bf16[T, 8], %w: bf16[E, 8]) { %y = wide_linear %x, %w  return %y }",
            "the kernel needs known widths",
        ),
        (
            """func @f(%x: f32[T, 8], %g: f32[4, 8], %u: f32[4, 8], %b: f32[4]) {
              %y = gated_linear %x, %g, %u, %b
              return %y
            }""",
            "a bias on one of gate and up only",
        ),
        (
            "func @f(%x: f64[T, 8], %w: f64[4, 8]) { %y = linear %x, %w  return %y }",
            "the kernel takes f32, bf16 and f16",
        ),
    ],
)
def test_no_kernel(text: str, reason: str) -> None:
    func = parse_func(text)
    (step,) = emit(func, LayoutMap(func), "cuda")
    assert reason in step.refusal


@pytest.mark.parametrize("dtype", DTYPES)
def test_ranges_cover_every_number_of_tokens_once(dtype: str) -> None:
    for out, columns in ((dtype, False), (dtype, True), ("f32", False)):
        shape = Shape(4096, (4096,), out, dtype, dtype, columns=columns)
        choices = choose_linear(shape)
        assert choices[0].first == 1
        assert choices[-1].last is None
        for before, after in itertools.pairwise(choices):
            assert after.first == (before.last or 0) + 1


RELEASED = {
    "qwen3-8b qkv": ("merged", 4096, (4096, 1024, 1024)),
    "qwen3-8b norm and qkv": ("normed", 4096, (4096, 1024, 1024)),
    "qwen3-8b gate-up": ("gated", 4096, (12288,)),
    "qwen3-8b down": ("add", 12288, (4096,)),
    "qwen3-8b lm_head": ("linear", 4096, (151936,)),
    "deepseek-v3 q_a and kv_a": ("merged", 7168, (1536, 576)),
    "deepseek-v3 norm, q_a and kv_a": ("normed", 7168, (1536, 576)),
    "deepseek-v3 router": ("wide", 7168, (256,)),
    "router in float32": ("mixed", 7168, (256,)),
}
"""Kind of product, width of x, widths of the results."""


def released(kind: str, k: int, outputs: tuple[int, ...], dtype: str = "bf16") -> str:
    """The text of a func with one product."""
    weight = "f32" if kind == "mixed" else dtype
    names = [f"%w{i}" for i, _ in enumerate(outputs)]
    takes = ", ".join(f"{w}: {weight}[{n}, {k}]" for w, n in zip(names, outputs, strict=True))
    x, n = f"%x: {dtype}[T, {k}]", outputs[0]
    match kind:
        case "merged":
            ys = ", ".join(f"%y{i}" for i, _ in enumerate(outputs))
            body = f"{ys} = merged_linear %x, [{', '.join(names)}], []  return {ys}"
        case "normed":
            takes += f", %r: {dtype}[T, {k}], %n: {dtype}[{k}]"
            ys = ", ".join(f"%y{i}" for i, _ in enumerate(outputs))
            body = f"%s, %y, {ys} = norm_linear %x, %r, %n, [{', '.join(names)}], []"
            body += f"  return %s, {ys}"
        case "gated":
            takes += f", %u: {dtype}[{n}, {k}]"
            body = "%y = gated_linear %x, %w0, %u  return %y"
        case "add":
            takes += f", %r: {dtype}[T, {n}]"
            body = "%y = linear_add %x, %w0, %r  return %y"
        case _:
            body = f"%y = {'linear' if kind == 'linear' else 'wide_linear'} %x, %w0  return %y"
    return f"func @f({x}, {takes}) {{ {body} }}"


def copies(binary: Binary, folder: Path) -> list[str]:
    """The copies from global to shared memory, as the disassembler writes them."""
    file = folder / "kernel.cubin"
    file.write_bytes(binary.cubin)
    tool: str = importlib.import_module("triton.knobs").nvidia.nvdisasm.path
    code = subprocess.run([tool, "-c", str(file)], capture_output=True, text=True, check=True)
    return re.findall(r"\bLDGSTS[.A-Z0-9]*", code.stdout)


def test_binaries_read_16_bytes_at_once(binary_cache: Cache, tmp_path: Path) -> None:
    check_binaries("qwen3-8b down", TARGETS["sm_90"], binary_cache, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", GPU_TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("name", RELEASED)
def test_binaries_of_released_sizes(
    name: str, target: Target, binary_cache: Cache, tmp_path: Path
) -> None:
    check_binaries(name, target, binary_cache, tmp_path)


def check_binaries(name: str, target: Target, cache: Cache, folder: Path) -> None:
    """Weights come 16 bytes at a time, and nothing is spilled."""
    for _, made in binaries(released(*RELEASED[name]), cache, [target]):
        kernel, found = made.launch.kernel, made.binary.resources
        if isinstance(kernel, LinearRowsKernel):
            assert found["widest_load"] == 128, target.name
            if not kernel.residual and kernel.x_dtype == kernel.weight_dtype:
                assert found["narrowest_load"] == 128, target.name
        if isinstance(kernel, LinearTileKernel):
            widths = copies(made.binary, folder)
            assert widths, target.name
            assert all(width.endswith(".128") for width in widths), target.name


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASED)
def test_other_configurations_do_not_spill(name: str, binary_cache: Cache) -> None:
    """Some ask for more shared memory than the smallest target has."""
    func = parse_func(released(*RELEASED[name]))
    (step,) = emit(func, LayoutMap(func), "cuda")
    for launch in step.launches:
        for target in GPU_TARGETS if launch.others else ():
            good, refused = candidates(binary_cache, launch, target)
            assert good, refused
            assert all("shared memory" in reason for reason in refused), refused


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", range(1, MOST_ROWS + 2))
def test_every_small_number_of_tokens(tokens: int, dtype: str) -> None:
    text = f"""func @f(%x: {dtype}[T, 64], %w: {dtype}[9, 64]) {{
      %y = linear %x, %w
      return %y
    }}"""
    check(text, [seeded(tokens, 64, dtype=DTYPES[dtype]), weights(9, 64, dtype=dtype)])
