"""A kernel is no CUDA C++."""

from pathlib import Path

from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu.cuda_build import CudaSource, build_cuda

TEXT = """
extern "C" __global__ void norm_0123(float *x) { raise_the_roof(x); }
"""


def program(tmp: Path) -> None:
    build_cuda(Cache.open(tmp), CudaSource("norm_0123", TEXT, {"x": "*fp32"}), 90)
