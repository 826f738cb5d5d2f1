"""Row norms in CUDA C++, compiled for the host: Triton's cases, and how rows share blocks."""

from __future__ import annotations

import pytest

from fuseline.codegen.gpu.cuda_norm import CudaRowNormKernel, forms
from fuseline.codegen.gpu.norm import NormOfRows, RowNormKernel
from fuseline.codegen.lower import Launch, emit
from fuseline.codegen.targets import GPU_TARGETS
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.runtime.cache import Cache
from tests.codegen.gpu import harness
from tests.codegen.gpu.harness import binaries_of, check
from tests.codegen.gpu.test_norm import test_cases, test_many_narrow_rows_share_a_block
from tests.codegen.oracle import DTYPES, seeded


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that run are in CUDA C++."""
    monkeypatch.setattr(harness, "ROAD", "cuda")


def norm(width: int, dtype: str = "bf16", residual: bool = True) -> str:
    """A func with one norm, with or without a residual sum."""
    op = "%s, %y = add_rms_norm %x, %r, %w" if residual else "%y = rms_norm %x, %w"
    return f"""func @f(%x: {dtype}[S, {width}], %r: {dtype}[S, {width}], %w: {dtype}[{width}]) {{
      {op}
      return {"%s, %y" if residual else "%y"}
    }}"""


def launches(text: str) -> list[list[Launch]]:
    """For each launch all its configurations, in their order."""
    func = parse_func(text)
    (step,) = emit(func, LayoutMap(func), "cuda")
    return [[launch, *launch.others] for launch in step.launches]


def kernels(text: str) -> list[CudaRowNormKernel]:
    """The kernels in CUDA C++ of the launch for the fewest rows."""
    return [n.kernel for n in launches(text)[0] if isinstance(n.kernel, CudaRowNormKernel)]


@pytest.mark.parametrize(
    ("width", "rows"), [(60, 3), (64, 9), (80, 11), (96, 1), (1024, 5), (2880, 2), (5120, 3)]
)
def test_rows_within_a_warp_and_of_a_block(width: int, rows: int) -> None:
    """Groups of 5 and 6 lanes, whole warps, blocks with and without idle threads."""
    for i, dtype in enumerate(DTYPES):
        x, r = (seeded(rows, width, dtype=DTYPES[dtype], seed=n, scale=2.0) for n in (i, 7))
        check(norm(width, dtype), [x, r, seeded(width, dtype=DTYPES[dtype], seed=8)])


def test_layer_norm_of_a_block() -> None:
    text = """func @f(%x: f16[S, 2064], %w: f16[2064], %b: f16[2064]) {
      %y = layer_norm %x, %w, %b {cast = "last"}
      return %y
    }"""
    x = seeded(2, 2064, dtype=DTYPES["f16"], scale=2.0) + 3.0
    check(text, [x, *(seeded(2064, dtype=DTYPES["f16"], seed=i) for i in (1, 2))])


def test_rows_have_the_lanes_that_they_need() -> None:
    for width, lanes, rows in [(64, 4, 8), (80, 5, 6), (96, 6, 5), (128, 8, 4), (256, 16, 2)]:
        first = kernels(norm(width))[0]
        assert (first.lanes, first.warp_rows, first.loads) == (lanes, rows, 2), width
    assert [k.lanes for k in kernels(norm(4096))] == [256, 512, 128]
    assert [k.lanes for k in kernels(norm(5120))] == [320, 640, 160]
    assert [k.lanes for k in kernels(norm(7168))] == [448, 896, 224]
    assert all(not k.masked for width in (4096, 5120, 7168) for k in kernels(norm(width)))


def test_first_where_blocks_of_triton_are_padded() -> None:
    """Equals stay behind; so does what cannot be read 16 bytes at once."""

    def first(text: str) -> type:
        return type(launches(text)[0][0].kernel)

    assert first(norm(5120)) is first(norm(7168)) is first(norm(80)) is CudaRowNormKernel
    assert first(norm(4096)) is first(norm(128)) is RowNormKernel
    assert first(norm(5121)) is first(norm(2052)) is RowNormKernel


def test_no_form_for_rows_that_the_threads_of_a_block_do_not_hold() -> None:
    """A thread would have to keep 60 elements of them; Triton's kernel remains."""
    with pytest.raises(ValueError, match="rows of 61441 elements, 1 at once"):
        forms(NormOfRows("f32", 61441, flat=True), warps=1)


@pytest.mark.parametrize(
    "width",
    [pytest.param(4096, marks=pytest.mark.slow), 5120, pytest.param(7168, marks=pytest.mark.slow)],
)
def test_binaries_of_released_sizes_move_16_bytes_at_once(width: int, binary_cache: Cache) -> None:
    found = [n for n in launches(norm(width))[0] if isinstance(n.kernel, CudaRowNormKernel)]
    for target, made in binaries_of(found[:1], binary_cache, GPU_TARGETS):
        resources = made.binary.resources
        assert resources["narrowest_load"] == 128, target.name
        assert resources["narrowest_store"] == 128, target.name
        assert made.resident >= 0.25, target.name


__all__ = [
    "test_cases",
    "test_many_narrow_rows_share_a_block",
]
