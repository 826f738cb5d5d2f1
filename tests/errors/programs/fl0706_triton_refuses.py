"""A kernel is no Triton."""

from pathlib import Path

from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu.triton_build import TritonSource, build_triton

TEXT = """
import triton
import triton.language as tl


@triton.jit
def norm_0123(x):
    raise_the_roof(x)
"""


def program(tmp: Path) -> None:
    source = TritonSource("norm_0123", TEXT, {"x": "*fp32"})
    build_triton(Cache.open(tmp), source, 90)
