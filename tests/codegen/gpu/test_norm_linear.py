"""A norm and the product of it in Triton: numbers, and when they are one launch."""

from __future__ import annotations

import pytest

from fuseline.codegen.gpu import linear_choice, norm_linear
from fuseline.codegen.gpu.norm_linear import NormLinearKernel
from fuseline.codegen.lower import emit
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from tests.codegen.gpu.harness import check, run_func
from tests.codegen.gpu.test_linear import weights
from tests.codegen.oracle import DTYPES, seeded

TOKENS = (1, 2, 3, 17)
"""One kernel, one for two rows, tiles, and the library."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", TOKENS)
def test_siblings_of_a_sum(tokens: int, dtype: str) -> None:
    text = f"""func @f(%x: {dtype}[1, T, 96], %r: {dtype}[1, T, 96], %n: {dtype}[96],
                       %w: {dtype}[27, 96], %b: {dtype}[27]) {{
      %q = slice %w {{axis = 0, start = 0, stop = 13}}
      %k = slice %w {{axis = 0, start = 13, stop = 27}}
      %c = slice %b {{axis = 0, start = 0, stop = 13}}
      %d = slice %b {{axis = 0, start = 13, stop = 27}}
      %s, %y, %z1, %z2 = norm_linear %x, %r, %n, [%q, %k], [%c, %d] {{eps = 1e-05}}
      return %s, %y, %z1, %z2
    }}"""
    kind = DTYPES[dtype]
    arguments = [
        seeded(1, tokens, 96, dtype=kind),
        seeded(1, tokens, 96, dtype=kind, seed=2),
        seeded(96, dtype=kind, seed=3),
        weights(27, 96, dtype=dtype),
        seeded(27, dtype=kind, seed=4),
    ]
    check(text, arguments, ops=["norm_linear"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("cast", ["before_weight", "last"])
def test_gate_and_up_of_a_slice(tokens: int, dtype: str, cast: str) -> None:
    text = f"""func @f(%t: {dtype}[T, 120], %n: {dtype}[112], %w: {dtype}[38, 112]) {{
      %x = slice %t {{axis = 1, start = 8, stop = 120}}
      %g = slice %w {{axis = 0, start = 0, stop = 19}}
      %u = slice %w {{axis = 0, start = 19, stop = 38}}
      %y, %z = norm_linear %x, _, %n, [%g, %u], []
        {{eps = 1e-06, offset = 1.0, cast = "{cast}", activation = "silu"}}
      return %y, %z
    }}"""
    kind = DTYPES[dtype]
    arguments = [
        seeded(tokens, 120, dtype=kind),
        seeded(112, dtype=kind, seed=3).mul(0.1),
        weights(38, 112, dtype=dtype),
    ]
    check(text, arguments, ops=["norm_linear"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("columns", [64, 83], ids=["whole groups", "part of a group"])
def test_a_block_with_several_groups_of_columns(
    tokens: int, dtype: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many columns have as at released sizes: there are more blocks than the device holds."""
    monkeypatch.setattr(linear_choice, "BLOCKS", 2)
    monkeypatch.setattr(norm_linear, "BLOCKS", 2)
    text = f"""func @f(%x: {dtype}[T, 352], %r: {dtype}[T, 352], %w: {dtype}[{columns}, 352]) {{
      %s, %y, %z = norm_linear %x, %r, _, [%w], []
      return %s, %y, %z
    }}"""
    kind = DTYPES[dtype]
    x, r = seeded(tokens, 352, dtype=kind), seeded(tokens, 352, dtype=kind, seed=2)
    w = weights(columns, 352, dtype=dtype)
    (step,) = run_func(parse_func(text), [x, r, w]).steps
    joined = [n.kernel for n in step.launches if isinstance(n.kernel, NormLinearKernel)]
    (kernel,) = (k for k in joined if k.least <= tokens <= k.block_m)
    assert kernel.groups > 1
    assert kernel.steps > 1
    check(text, [x, r, w], ops=["norm_linear"])


@pytest.mark.parametrize(("tokens", "families"), [(1, 1), (2, 1), (3, 2), (16, 2), (17, 2)])
def test_one_launch_for_one_row_or_two(tokens: int, families: int) -> None:
    text = f"""func @f(%x: bf16[{tokens}, 4096], %n: bf16[4096], %w: bf16[6144, 4096]) {{
      %y, %z = norm_linear %x, _, %n, [%w], []
      return %y, %z
    }}"""
    func = parse_func(text)
    (step,) = emit(func, LayoutMap(func), "cuda")
    assert len(step.launches) == families
    joined = [n for n in step.launches if isinstance(n.kernel, NormLinearKernel)]
    assert len(joined) == (families == 1)
    for launch in joined:  # measured against one kernel for each step
        assert [n.kernel.family for n in launch.instead] == ["row_norm", "linear_rows"]


def test_every_size_has_its_norm_once() -> None:
    text = """func @f(%x: bf16[T, 96], %n: bf16[96], %w: bf16[32, 96]) {
      %y, %z = norm_linear %x, _, %n, [%w], []
      return %y, %z
    }"""
    func = parse_func(text)
    (step,) = emit(func, LayoutMap(func), "cuda")
    for tokens in (1, 2, 3, 16, 17, 512, 513, 100000):
        running = [
            n.kernel.family
            for n in step.launches
            if n.when and n.when[1] <= tokens and (n.when[2] is None or tokens <= n.when[2])
        ]
        norms = [name for name in running if name.startswith("row_norm")]
        assert len(norms) == (0 if tokens <= 2 else 1)
        assert running.count("norm_linear") == (1 if tokens <= 2 else 0)
        assert len(running) == (1 if tokens <= 2 else 2)
