"""The kernel that moves a window on: a buffer drops its first slices and gets new last ones."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.codegen.cpu.cpp import CPP_TYPES
from fuseline.codegen.kernel import KernelTemplate


@dataclass(frozen=True)
class ShiftWriteKernel(KernelTemplate, template="cpp/shift_write.cpp.jinja"):
    """``into[o, i, :kept] = into[o, i, count:]``, then ``into[o, i, kept:] = src[o, i, :count]``.

    All over the innermost ``width`` elements, whose stride is 1; the other strides are in elements.
    The buffer has ``kept + count`` slices. Each (o, i) is moved by one worker, in rising order.
    """

    varies = ""

    dtype: str

    @property
    def buffers(self) -> tuple[str, ...]:
        """The names of ``buf``, in order."""
        return ("src", "into")

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of ``dim``, in order."""
        strides = (f"{name}_{axis}" for name in ("src", "into") for axis in ("o", "i", "s"))
        return ("outer", "inner", "count", "kept", "width", *strides)

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        return f"Move a window of {self.dtype} on"

    @property
    def x_type(self) -> str:
        """The C++ type of the elements."""
        return CPP_TYPES[self.dtype]
