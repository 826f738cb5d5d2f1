"""CUDA C++ to binaries by NVRTC, without a GPU; and what happens where that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuseline import build
from fuseline.build_gpu import candidate, choose, cuda_source
from fuseline.codegen.gpu.cuda_norm import CudaRowNormKernel
from fuseline.codegen.gpu.norm import RowNormKernel
from fuseline.codegen.lower import Launch, emit
from fuseline.codegen.targets import TARGETS
from fuseline.config import Config
from fuseline.debug.dump import Dump
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu import cuda_build
from fuseline.runtime.gpu.binary import Binary
from fuseline.runtime.gpu.cuda_build import CudaError, CudaSource, build_cuda

pytest.importorskip("triton", reason="its tools read the binaries")
assert cuda_build.has_nvrtc(), cuda_build.identity()

TEXT = """func @f(%x: bf16[S, 2880], %w: bf16[2880]) {
  %y = rms_norm %x, %w
  return %y
}"""
"""2880 elements are no power of two: CUDA C++ comes first."""

SOURCE = CudaSource(
    "twice_0123",
    """#include "fuseline_cuda.h"
extern "C" __global__ void twice_0123(float *x, i64 n) {
  if (threadIdx.x < n) x[threadIdx.x] *= 2.0f;
}
""",
    {"x": "*fp32", "n": "i64"},
    warps=2,
)


def launch() -> Launch:
    """The norm, in CUDA C++ first."""
    func = parse_func(TEXT)
    (step,) = emit(func, LayoutMap(func), "cuda")
    (found,) = step.launches
    assert isinstance(found.kernel, CudaRowNormKernel)
    return found


@pytest.fixture(scope="module")
def binary_cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """One cache of binaries for all tests."""
    return Cache(tmp_path_factory.mktemp("binaries"))


@pytest.fixture
def no_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the library."""
    monkeypatch.setattr(cuda_build, "_nvrtc", lambda: (None, "no libnvrtc"))


@pytest.mark.parametrize("capability", [80, 90, 100, 120])
def test_a_binary_for_every_target(binary_cache: Cache, capability: int) -> None:
    entry = build_cuda(binary_cache, SOURCE, capability)
    binary = Binary.of(entry)
    assert binary.symbol == "twice_0123"
    assert binary.parameters == ("*fp32", "i64")
    assert (binary.warps, binary.scratch_pointers, binary.scratch) == (2, 0, 0)
    assert binary.resources["widest_load"] == 32
    assert not binary.spills
    assert binary.cubin.startswith(b"\x7fELF")
    assert f".target sm_{capability}" in entry.file("kernel.ptx").read_text()


def test_the_same_bytes_twice(binary_cache: Cache) -> None:
    kernel = launch().kernel
    assert isinstance(kernel, CudaRowNormKernel)
    source = cuda_source(kernel)
    found: list[bytes] = []
    for other in ("a", "b"):
        folder = binary_cache.root / f"twice-{other}"
        folder.mkdir(mode=0o700)
        found.append(Binary.of(build_cuda(Cache(folder), source, 90)).cubin)
    assert found[0] == found[1]


def test_the_key_has_all_that_changes_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = SOURCE.factors(90)
    assert "--fmad=false" in str(factors["options"])
    assert str(factors["compiler"]).startswith("nvrtc ")
    headers = factors["headers"]
    assert isinstance(headers, dict)
    assert set(headers) == set(cuda_build.headers())
    assert factors["target"] == "sm_90"
    monkeypatch.setattr(cuda_build, "_nvrtc", lambda: (None, "99.9"))
    assert SOURCE.factors(90)["compiler"] == "nvrtc 99.9"


def test_products_are_not_fused(binary_cache: Cache) -> None:
    """A rounded product is added, as the references do."""
    text = """extern "C" __global__ void fused_0123(float *x) {
      x[0] = x[1] * x[2] + x[3];
    }"""
    entry = build_cuda(binary_cache, CudaSource("fused_0123", text, {"x": "*fp32"}), 90)
    ptx = entry.file("kernel.ptx").read_text()
    assert "fma" not in ptx
    assert "mul.rn.f32" in ptx
    assert "ftz" not in ptx


def test_an_error_is_a_diagnostic_and_keeps_the_log(binary_cache: Cache) -> None:
    source = CudaSource("bad_0123", 'extern "C" __global__ void bad_0123() { nonsense; }', {})
    with pytest.raises(CudaError) as raised:
        build_cuda(binary_cache, source, 90)
    assert raised.value.diagnostic.code == "FL0706"
    assert 'identifier "nonsense" is undefined' in str(raised.value)
    assert "1 error detected" in raised.value.output


def test_what_does_not_compile_leaves_the_next_configuration(
    binary_cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def render(kernel: CudaRowNormKernel) -> str:
        return f"nonsense {kernel.symbol};"

    monkeypatch.setattr(CudaRowNormKernel, "render", render)
    chosen = choose(binary_cache, launch(), TARGETS["sm_90"])
    assert not isinstance(chosen, str)
    assert isinstance(chosen.launch.kernel, RowNormKernel)


@pytest.mark.usefixtures("no_nvrtc")
def test_without_nvrtc_it_is_triton_and_the_report_says_so(binary_cache: Cache) -> None:
    with pytest.raises(CudaError) as raised:
        build_cuda(binary_cache, SOURCE, 90)
    assert raised.value.diagnostic.code == "FL0708"
    first = candidate(binary_cache, launch(), TARGETS["sm_90"])
    assert isinstance(first, str)
    assert "NVRTC is not installed: found no libnvrtc" in first
    tools = build.Tools.find(Config(cache_dir=binary_cache.root))
    built = build.build(parse_func(TEXT), {}, tools, TARGETS["sm_90"])
    (record,) = built.assembled.records
    assert record.family == "row_norm"
    assert record.status == "native"
    assert record.needs.endswith("; in Triton only: NVRTC is not installed")


def test_with_nvrtc_the_report_names_the_kernel(binary_cache: Cache) -> None:
    tools = build.Tools.find(Config(cache_dir=binary_cache.root))
    built = build.build(parse_func(TEXT), {}, tools, TARGETS["sm_90"])
    records = built.assembled.records
    assert "row_norm_cuda" in {record.family for record in records}, "at some sizes"
    assert not any("Triton only" in record.needs for record in records)
    assert any("__global__" in text for text in built.sources.values())


def test_dumps_show_the_source(tmp_path: Path) -> None:
    kernel = launch().kernel
    Dump(tmp_path, "model").kernels({kernel.symbol: kernel.render()}, {kernel.symbol: ".target"})
    (file,) = (tmp_path).rglob("*.cu")
    assert file.stem == kernel.symbol
    assert file.read_text() == kernel.render()
    assert file.with_suffix(".ptx").read_text() == ".target"
