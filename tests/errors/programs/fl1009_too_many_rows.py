"""More rows than a kernel counts."""

from pathlib import Path
from unittest import mock

import torch

from fuseline.runtime.gpu.driver import Function
from fuseline.runtime.gpu.kernels import DeviceKernels

ROWS = 2**31
FUNCTION = Function(1, 128, 0, ("*bf16", "i32", "*i8", "*i8"), None)


def program(tmp: Path) -> None:
    kernels = DeviceKernels(
        {}, mock.Mock(), torch.device("cuda", 0), "sm_90", _loaded={"norm": FUNCTION}
    )
    kernels.call("norm", (ROWS,), (ROWS // 8, 1, 1))
