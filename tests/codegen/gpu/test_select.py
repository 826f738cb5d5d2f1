"""Top-k and running sums in Triton, from a func in text form to numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fuseline.codegen.library import LibraryKernel
from fuseline.codegen.lower import emit
from fuseline.codegen.targets import GPU_TARGETS
from fuseline.ir.core import Func
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.runtime.cache import Cache
from tests.codegen.gpu.harness import binaries, run_func
from tests.codegen.gpu.region_harness import check_func
from tests.codegen.machine import Machine
from tests.codegen.oracle import DTYPES, seeded

KINDS = DTYPES | {
    "f64": torch.float64,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("largest", ["true", "false"])
def test_topk_of_distinct_numbers(name: str, largest: str) -> None:
    """Of strided rows, more rows than a block has; f64 and i64 are left to torch's library."""
    text = f"""func @f(%x: {name}[T, 40]) {{
      %s = slice %x {{axis = 1, start = 3, stop = 36}}
      %a, %b = topk %s {{k = 5, axis = 1, largest = {largest}}}
      return %a, %b
    }}"""
    generator = torch.Generator().manual_seed(3)
    low = 0 if name == "u8" else -20
    for tokens in (0, 1, 19):
        rows = [torch.randperm(40, generator=generator) + low for _ in range(tokens)]
        x = torch.stack(rows) if rows else torch.zeros(0, 40)
        check_func(text, [x.to(KINDS[name])], ops=["topk"])


def test_topk_takes_the_first_of_equal_elements() -> None:
    text = """func @f(%x: bf16[T, 9]) {
      %a, %b = topk %x {k = 4, axis = 1}
      %c, %d = topk %x {k = 4, axis = 1, largest = false}
      return %b, %d
    }"""
    inf, nan = torch.inf, torch.nan
    x = torch.tensor([
        [1, 2, 2, 1, 2, 1, 2, 2, 0],
        [0, -0.0, 0, -1, 0, -0.0, 1, 0, 0],
        [nan, inf, 1, nan, -inf, 2, inf, -inf, nan],
        [-inf, -inf, -inf, -inf, -inf, -inf, -inf, -inf, -inf],
    ]).bfloat16()  # fmt: skip
    want = torch.sort(x.float(), dim=1, descending=True, stable=True).indices[:, :4]
    least = torch.sort(x.float(), dim=1, stable=True).indices[:, :4]
    func = parse_func(text)
    machine = machine_of(func, x)
    got = [machine.tensor(v) for v in func.returns]
    assert torch.equal(got[0], want)
    assert torch.equal(got[1], least)


def machine_of(func: Func, x: Tensor) -> Machine:
    return run_func(func, [x])


@pytest.mark.parametrize(("kind", "k"), [("f32[T, 5000]", 8), ("f32[T, 64]", 50), ("f32[T, V]", 2)])
def test_topk_of_wide_rows_and_of_many_is_the_librarys(kind: str, k: int) -> None:
    text = f"""func @f(%x: {kind}) {{
      %a, %b = topk %x {{k = {k}, axis = 1}}
      return %a, %b
    }}"""
    func = parse_func(text)
    (step,) = emit(func, LayoutMap(func), "cuda")
    assert isinstance(step.launches[0].kernel, LibraryKernel)
    width = int(kind[:-1].split(", ")[1].replace("V", "70"))
    check_func(text, [seeded(3, width, dtype=torch.float32)])


def test_no_topk_of_bools() -> None:
    func = parse_func("""func @f(%x: bool[4, 9]) {
      %a, %b = topk %x {k = 2, axis = 1}
      return %a, %b
    }""")
    (step,) = emit(func, LayoutMap(func), "cuda")
    assert step.refusal == "x bool[4, 9]; the kernel takes numbers"


@pytest.mark.parametrize("name", [*KINDS, "bool"])
@pytest.mark.parametrize(("axis", "shape"), [(0, (7,)), (1, (3, 50, 2)), (2, (2, 3, 1100))])
def test_cumsum(name: str, axis: int, shape: tuple[int, ...]) -> None:
    """Whole numbers: the sums are exact but where the type has no room for them."""
    kind = torch.bool if name == "bool" else KINDS[name]
    signed = kind not in (torch.bool, torch.uint8)
    x = (seeded(*shape, dtype=torch.float32, scale=2.0).round().abs() - int(signed)).to(kind)
    dims = ", ".join(str(e) for e in shape)
    text = f"""func @f(%x: {name}[{dims}]) {{
      %y = cumsum %x {{axis = {axis}}}
      return %y
    }}"""
    check_func(text, [x])


def test_cumsum_of_strided_operands_and_unknown_sizes() -> None:
    text = """func @f(%x: f32[B, S, 3, 4], %h: i32[S], %m: bool[B, S]) {
      %a = cumsum %x {axis = 1}
      %t = permute %x {dims = (0, 2, 1, 3)}
      %b = cumsum %t {axis = 1}
      %c = cumsum %h {axis = 0}
      %d = cumsum %m {axis = 1}
      %s = slice %x {axis = 2, start = 1, stop = 3}
      %e = cumsum %s {axis = 3}
      return %a, %b, %c, %d, %e
    }"""
    for batch, tokens in ((2, 5), (1, 1), (0, 3), (2, 0)):
        given = [
            seeded(batch, tokens, 3, 4, dtype=torch.float32),
            torch.arange(tokens, dtype=torch.int32) - 3,
            seeded(batch, tokens, dtype=torch.float32) > 0,
        ]
        check_func(text, given, atol=1e-6)


def test_binaries(binary_cache: Cache) -> None:
    """The choice of experts, and positions from a mask."""
    text = """func @f(%x: f32[T, 256], %m: bool[B, S]) {
      %a, %b = topk %x {k = 8, axis = 1}
      %c = cumsum %m {axis = 1}
      return %a, %b, %c
    }"""
    assert binaries(text, binary_cache, GPU_TARGETS[1:2])
