"""Programs run op by op, by the reference of each: slower, and right.

That is what is left where a program cannot run from its kernels: nothing here can launch them, the
driver does not load one of them, or weights cannot be brought to where they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from fuseline import errors
from fuseline.frontend.captured import Argument
from fuseline.frontend.execute import Compiled
from fuseline.ir.core import Func
from fuseline.ir.evaluate import evaluate


@dataclass(frozen=True)
class OpByOp:
    """A func run on a device by the references of its ops.

    Attributes:
        func: what to run.
        device: where its tensors are, and those that it makes.
        refused: whether a call is refused: torch adds in an order that depends on the sizes.
    """

    func: Func
    device: torch.device
    refused: bool = False

    def __call__(self, arguments: Sequence[Argument]) -> list[Tensor]:
        """The results; buffers are written in place.

        Raises:
            BuildError: FL0501, where that is refused.

        """
        if self.refused:
            raise errors.NOT_BATCH_INVARIANT.error(
                f"{self.func.name} by torch", found="a program that is run op by op"
            )
        with self.device if self.device.type != "cpu" else nullcontext():
            return evaluate(self.func, arguments)


class UntilRefused:
    """Runs a program from its kernels, and op by op once the driver does not load one of them.

    All kernels of a call are loaded before anything of it runs, so that call is not lost.
    """

    def __init__(
        self,
        run: Compiled,
        plain: OpByOp,
        check: Callable[[Sequence[Argument]], object],
        name: str,
    ) -> None:
        self.run = run
        self.plain = plain
        self.check = check
        self.name = name
        self.refused = False

    def __call__(self, arguments: Sequence[Argument]) -> Sequence[Tensor]:
        """Run the program, from its kernels if they can be loaded."""
        if not self.refused:
            try:
                return self.run(arguments)
            except errors.DeviceError as error:
                if error.diagnostic.code != errors.KERNEL_UNLOADABLE.code:
                    raise
                self.refused = True
                found, hint = str(error.diagnostic), error.diagnostic.hint
                found = found.partition(" Hint:")[0].rstrip(".")
                errors.BUILT_FOR_ANOTHER.warn(self.name, found=found, hint=hint)
        self.check(arguments)
        return self.plain(arguments)


__all__ = ["OpByOp", "UntilRefused"]
