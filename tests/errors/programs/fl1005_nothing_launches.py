"""A model is on a GPU, and the package that speaks to the driver is not installed."""

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

from fuseline.build import Tools
from fuseline.codegen.targets import TARGETS
from fuseline.compilation import Compilation
from fuseline.compiler import Compiler
from fuseline.config import Config
from fuseline.runtime.gpu import driver


def program(tmp: Path) -> None:
    config = Config(cache_dir=tmp)
    compiler = Compiler(config, _tools=Tools.find(config))
    built = SimpleNamespace(target=TARGETS["sm_90"], binaries={})
    device = torch.device("cuda", 0)
    compilation = mock.Mock(Compilation, built=built, device=device)
    compilation.name = "forward"
    driver.driver.cache_clear()
    driver.launcher_addresses.cache_clear()
    with mock.patch.object(driver, "has_bindings", return_value=False):
        assert compiler._kernels(compilation) is None  # pyright: ignore[reportPrivateUsage]
