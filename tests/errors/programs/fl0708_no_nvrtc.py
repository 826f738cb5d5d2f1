"""A kernel in CUDA C++ is wanted, and nothing can build it."""

from pathlib import Path
from unittest import mock

from fuseline.runtime.cache import Cache
from fuseline.runtime.gpu import cuda_build
from fuseline.runtime.gpu.cuda_build import CudaSource, build_cuda


def program(tmp: Path) -> None:
    source = CudaSource("norm_0123", "", {"x": "*fp32"})
    with mock.patch.object(cuda_build, "_nvrtc", return_value=(None, "no libnvrtc")):
        build_cuda(Cache.open(tmp), source, 90)
