"""A kernel was built for another GPU."""

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from fuseline.runtime.gpu import driver
from fuseline.runtime.gpu.binary import Binary

STATUS = SimpleNamespace(name="CUDA_ERROR_NO_BINARY_FOR_GPU")
CUDA = mock.Mock()
CUDA.cuCtxPushCurrent.return_value = (0,)
CUDA.cuModuleLoadData.return_value = (STATUS, None)
CUDA.cuDriverGetVersion.return_value = (0, 12040)
CUDA.cuGetErrorString.return_value = (0, b"no kernel image is available")


def program(tmp: Path) -> None:
    with (
        mock.patch.object(driver, "driver", return_value=CUDA),
        mock.patch.object(driver, "primary_context", return_value=1),
    ):
        driver.load(Binary("row_norm_0123", b"", (), 4, 0, {}), 0, "sm_90")
