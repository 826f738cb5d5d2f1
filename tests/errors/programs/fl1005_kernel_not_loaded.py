"""The driver is too old for a kernel of a program."""

from pathlib import Path

import torch

from fuseline import errors
from fuseline.ir.text import parse_func
from fuseline.op_by_op import OpByOp, UntilRefused

FUNC = parse_func("func @f(%x: f32[S]) { %y = add %x, %x  return %y }")


def program(tmp: Path) -> None:
    del tmp

    def refused(arguments: object) -> list[torch.Tensor]:
        found = "CUDA_ERROR_UNSUPPORTED_PTX_VERSION, with a driver for CUDA 12.0"
        raise errors.KERNEL_UNLOADABLE.error("row_norm_0123", where="sm_90", found=found)

    plain = OpByOp(FUNC, torch.device("cpu"))
    run = UntilRefused(refused, plain, lambda arguments: None, "forward")
    for _ in range(3):
        (y,) = run([torch.ones(4)])
        assert torch.equal(y, torch.full((4,), 2.0))
