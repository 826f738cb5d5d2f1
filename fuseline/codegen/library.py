"""Calls of torch's own libraries, where they do best: launched like a kernel, and never built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fuseline.codegen.kernel import KernelTemplate
from fuseline.codegen.lower import Scratch
from fuseline.ir.layout import dense
from fuseline.ir.types import Dim, DType, TensorType


@dataclass(frozen=True)
class ScratchTensor(Scratch):
    """Scratch that is a tensor to a library, dense and of a known type."""

    shape: tuple[Dim, ...]
    dtype: DType

    @classmethod
    def dense(cls, shape: tuple[Dim, ...], dtype: DType) -> ScratchTensor:
        """Scratch for a tensor of this shape and type."""
        return cls(TensorType(dtype, shape).nbytes, shape, dtype)

    @property
    def strides(self) -> tuple[Dim, ...]:
        """The strides of the tensor."""
        return dense(self.shape).strides


@dataclass(frozen=True)
class LibraryKernel(KernelTemplate):
    """A function of `fuseline.runtime.library`.

    The launch's buffers are its operands (None where one is absent), then its ``results``: whole
    values, with their shapes and strides, or scratch that has them (`ScratchTensor`).

    Attributes:
        name: of the function.
        results: how many buffers it writes.
        attributes: its further arguments.

    """

    varies = "torch's library chooses how it adds by the number of rows"

    family = "library"

    name: str
    results: int = 1
    attributes: tuple[tuple[str, Any], ...] = ()

    @property
    def title(self) -> str:
        """What it does."""
        return f"{self.name} of torch"


@dataclass(frozen=True)
class ReferenceKernel(KernelTemplate):
    """An op's reference, where its kernels lose against it: plain torch, into the same memory.

    Attributes:
        reason: why it runs.

    """

    varies = "torch chooses how it adds by the number of rows"

    family = "reference"

    reason: str


__all__ = ["LibraryKernel", "ReferenceKernel", "ScratchTensor"]
