"""A target that this Triton does not know."""

from pathlib import Path

from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu.triton_build import TritonSource, build_triton

TEXT = """
import triton
import triton.language as tl


@triton.jit
def ones_0123(x):
    tl.store(x, 1.0)
"""


def program(tmp: Path) -> None:
    source = TritonSource("ones_0123", TEXT, {"x": "*fp32"})
    build_triton(Cache.open(tmp), source, 999)
