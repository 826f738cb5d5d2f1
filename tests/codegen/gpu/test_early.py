"""What kernels begin with that are launched before the one ahead of them has ended.

No GPU runs: that they wait is read from their PTX.
"""

from __future__ import annotations

import pytest

from fuseline.build_gpu import triton_source
from fuseline.codegen.gpu.kernel import TritonKernel
from fuseline.codegen.lower import emit
from fuseline.codegen.targets import GPU_TARGETS
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func
from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu.binary import Binary
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
            wait = ptx.index("griddepcontrol.wait")
            assert wait < ptx.index("griddepcontrol.launch_dependents") < ptx.index("ld.global")


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
