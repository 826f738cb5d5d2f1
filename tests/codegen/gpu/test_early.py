"""What kernels begin with that are launched before the one ahead of them has ended.

No GPU runs: that they wait is read from their PTX.
"""

from __future__ import annotations

import re

import pytest

from fuseline.build_gpu import cuda_source, triton_source
from fuseline.codegen.gpu.cuda import CudaKernel
from fuseline.codegen.gpu.kernel import TritonKernel
from fuseline.codegen.lower import emit
from fuseline.codegen.targets import GPU_TARGETS
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu.binary import Binary
from fuseline.runtime.gpu.cuda_build import build_cuda
from fuseline.runtime.gpu.triton_build import build_triton
from tests.codegen.gpu import harness
from tests.codegen.gpu.harness import binaries

NORM = """func @f(%x: bf16[S, 512], %w: bf16[512]) {
  %y = rms_norm %x, %w
  return %y
}"""


@pytest.mark.parametrize("road", ["triton", "cuda"])
def test_they_wait_before_they_touch_memory(
    road: str, binary_cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "ROAD", road)
    found = binaries(NORM, binary_cache)
    for target, made in found:
        assert made.binary.waits == (target.capability >= 90), target.name
    symbols = {made.binary.symbol for _, made in found}
    entries = [e for e in binary_cache.entries() if e.factors.get("name") in symbols]
    assert len(entries) >= len(GPU_TARGETS)
    for ptx in (entry.file("kernel.ptx").read_text() for entry in entries):
        if ".target sm_80" in ptx:
            assert "griddepcontrol" not in ptx
        else:
            assert 0 < ptx.index("griddepcontrol.wait") < ptx.index("ld.global")
            assert "griddepcontrol.launch_dependents" in ptx
            assert "ld.global.nc" not in ptx, "what the kernel ahead writes is not read-only"


def test_a_waiting_kernel_is_another_entry(binary_cache: Cache) -> None:
    """Its source is another one, and the cache knows."""
    func = parse_func(NORM)
    (step,) = emit(func, LayoutMap(func), "cuda")
    kernel = next(
        n.kernel for n in (step.launches[0], *step.launches[0].others)
        if isinstance(n.kernel, TritonKernel)
    )  # fmt: skip
    source = triton_source(kernel)
    early = [t for t in GPU_TARGETS if "gdc_wait" in source.text_for(t.capability)]
    assert [t.name for t in early] == ["sm_90", "sm_100", "sm_120"]
    digests = {str(source.factors(t.capability)["source"]) for t in GPU_TARGETS}
    assert len(digests) == 2
    assert Binary.of(build_triton(binary_cache, source, 90)).waits


@pytest.mark.parametrize(
    ("weight", "first"), [('%w: bf16[64, 512] = param "w"', "w"), ("%w: bf16[64, 512]", "x")]
)
def test_only_weights_of_the_model_are_read_before_the_wait(
    weight: str, first: str, binary_cache: Cache
) -> None:
    """What is no parameter may be what the kernel ahead writes."""
    func = parse_func(f"""func @f(%x: bf16[1, 512], {weight}) {{
      %y = linear %x, %w
      return %y
    }}""")
    (step,) = emit(func, LayoutMap(func), "cuda")
    kernel = step.launches[0].kernel
    assert isinstance(kernel, TritonKernel)
    text = triton_source(kernel).text_for(90)
    before = text[: text.index("gdc_wait")].count("tl.load(")
    assert before == (first == "w")
    ptx = build_triton(binary_cache, triton_source(kernel), 90).file("kernel.ptx").read_text()
    begin = ptx[: ptx.index("griddepcontrol.wait")]
    assert ("ld.global" in begin) == (first == "w")


NORMS = {
    "rows": (
        """func @f(%x: bf16[S, 4096], %r: bf16[S, 4096], %w: bf16[4096] = param "w") {
          %s, %y = add_rms_norm %x, %r, %w
          return %s, %y
        }""",
        [True],
        1 / 3,
    ),
    "layer norm": (
        """func @f(%x: f16[S, 2048], %w: f16[2048] = param "w", %b: f16[2048] = param "b") {
          %y = layer_norm %x, %w, %b
          return %y
        }""",
        [True],
        2 / 3,
    ),
    "heads": (
        """func @f(%q: bf16[1, S, 8, 128], %k: bf16[1, S, 2, 128], %w: bf16[128] = param "w",
            %u: bf16[128] = param "u", %c: bf16[1, S, 128], %s: bf16[1, S, 128]) {
          %y, %z = qk_norm_rope %q, %k, %w, %u, _, _, %c, %s {width = 128}
          return %y, %z
        }""",
        [True, True],
        1 / 4,
    ),
    "rows of three": (
        """func @f(%q: bf16[1, S, 1536], %l: bf16[1, S, 512], %k: bf16[1, S, 64],
            %w: bf16[1536] = param "w", %u: bf16[512] = param "u", %c: bf16[1, S, 64],
            %s: bf16[1, S, 64]) {
          %x, %y, %z = merged_rows [%q, %l], [%w, %u], [%k], %c, %s {width = 64}
          return %x, %y, %z
        }""",
        [True, True, False],
        1 / 2,
    ),
}
"""A norm, which branches of its kernel have weights, and their share in all that it reads."""


def ptx_of(text: str, road: str, cache: Cache) -> str:
    """The kernel for few rows on sm_90."""
    func = parse_func(text)
    (step,) = emit(func, LayoutMap(func), "cuda")
    kernel = harness.in_language(step.launches[0]).kernel
    if isinstance(kernel, TritonKernel):
        return build_triton(cache, triton_source(kernel), 90).file("kernel.ptx").read_text()
    assert isinstance(kernel, CudaKernel), road
    return build_cuda(cache, cuda_source(kernel), 90).file("kernel.ptx").read_text()


@pytest.mark.parametrize("road", ["triton", "cuda"])
@pytest.mark.parametrize("name", NORMS)
def test_norms_ask_for_weights_of_the_model_before_they_wait(
    name: str, road: str, binary_cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each branch, and for nothing else: no more than that is asked for before."""
    monkeypatch.setattr(harness, "ROAD", road)
    text, branches, most = NORMS[name]
    ptx = ptx_of(text, road, binary_cache)
    *before, last = re.split(r"griddepcontrol\.wait\s*;", ptx)
    assert len(before) == len(branches)
    early: list[int] = []
    for part, weighted in zip(before, branches, strict=True):
        of_branch = part.rpartition("st.global")[2]
        early.append(of_branch.count("ld.global"))
        assert bool(early[-1]) == weighted
    assert last.count("ld.global")
    assert sum(early) <= most * ptx.count("ld.global")


@pytest.mark.parametrize("road", ["triton", "cuda"])
def test_norms_wait_first_for_weights_that_are_no_parameters(
    road: str, binary_cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be what the kernel ahead writes."""
    monkeypatch.setattr(harness, "ROAD", road)
    for text, *_ in NORMS.values():
        ptx = ptx_of(re.sub(r' = param "\w"', "", text, count=1), road, binary_cache)
        (before, behind) = re.split(r"griddepcontrol\.wait\s*;", ptx)
        assert "ld.global" not in before
        first, *_ = re.split(r"griddepcontrol\.launch_dependents\s*;", behind)
        assert "ld.global" in first, "the weights: no read is moved across that"
