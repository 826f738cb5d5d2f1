"""Programs that are run by the references of their ops."""

from __future__ import annotations

import pytest
import torch

from fuseline import errors
from fuseline.ir.text import parse_func
from fuseline.op_by_op import OpByOp, UntilRefused

MADE = parse_func("""func @f(%x: f32[S, 8]) {
  %at = iota {length = S}
  %c = cast %at {dtype = f32}
  %r = reshape %c {shape = (S, 1)}
  %y = add %x, %r
  return %y
}""")


def test_what_a_program_makes_is_on_its_device() -> None:
    """A device without memory stands for any that is not the default."""
    (y,) = OpByOp(MADE, torch.device("meta"))([torch.empty(3, 8, device="meta")])
    assert y.device.type == "meta"
    (y,) = OpByOp(MADE, torch.device("cpu"))([torch.zeros(3, 8)])
    assert torch.equal(y, torch.arange(3.0)[:, None].expand(3, 8))


def test_other_errors_of_a_device_are_no_reason_to_run_again() -> None:
    """What a launch has done may not be done twice."""

    def failing(arguments: object) -> list[torch.Tensor]:
        raise errors.LAUNCH_FAILED.error(found="CUDA_ERROR_ILLEGAL_ADDRESS")

    run = UntilRefused(failing, OpByOp(MADE, torch.device("cpu")), lambda arguments: None, "f")
    with pytest.raises(errors.DeviceError, match="FL1003"):
        run([torch.zeros(3, 8)])


def test_arguments_are_checked_where_kernels_are_not_loaded() -> None:
    def refused(arguments: object) -> list[torch.Tensor]:
        raise errors.KERNEL_UNLOADABLE.error("k_01", found="CUDA_ERROR_INVALID_IMAGE")

    checked: list[object] = []
    run = UntilRefused(refused, OpByOp(MADE, torch.device("cpu")), checked.append, "f")
    with pytest.warns(errors.FuselineWarning, match="FL1005 .*k_01.*INVALID_IMAGE"):
        run([torch.zeros(3, 8)])
    run([torch.zeros(2, 8)])
    assert len(checked) == 2
