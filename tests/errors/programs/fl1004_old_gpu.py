"""A GPU that no kernels are generated for."""

from pathlib import Path
from unittest import mock

import torch

from fuseline.errors import Diagnostic
from fuseline.placing import target_of


def program(tmp: Path) -> Diagnostic | None:
    with (
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(7, 5)),
        mock.patch.object(torch.cuda, "get_device_name", return_value="Tesla T4"),
    ):
        found = target_of(torch.device("cuda", 0))
    return found if isinstance(found, Diagnostic) else None
