"""An earlier kernel went wrong, and the driver takes no more."""

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from fuseline.runtime.gpu import driver

CUDA = mock.Mock()
CUDA.CUresult.return_value = SimpleNamespace(name="CUDA_ERROR_ILLEGAL_ADDRESS")
CUDA.cuGetErrorString.return_value = (0, b"an illegal memory access was encountered")


def program(tmp: Path) -> None:
    with mock.patch.object(driver, "driver", return_value=CUDA):
        raise driver.failed(700)
