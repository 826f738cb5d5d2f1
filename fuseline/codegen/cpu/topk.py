"""The kernel of `torch.topk` along rows."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.codegen.cpu.cpp import CPP_TYPES
from fuseline.codegen.kernel import KernelTemplate

ITEM_BYTES = 16
"""Of scratch, for each element of a row and each worker."""


@dataclass(frozen=True)
class TopKKernel(KernelTemplate, template="cpp/topk.cpp.jinja"):
    """``values[r], indices[r] = topk(x[r, :width], k)``.

    Rows of x begin at multiples of ``x_step``. Scratch holds `ITEM_BYTES` for each of ``width``
    elements and each worker.
    """

    varies = ""

    dtype: str
    largest: bool = True
    ordered: bool = True

    @property
    def buffers(self) -> tuple[str, ...]:
        """The names of ``buf``, in order."""
        return ("x", "values", "indices", "scratch")

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of ``dim``, in order."""
        return ("rows", "width", "k", "x_step")

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        order = ", in order" if self.ordered else ""
        return f"The {'largest' if self.largest else 'smallest'} of rows of {self.dtype}{order}"

    @property
    def x_type(self) -> str:
        """The C++ type of the elements."""
        return CPP_TYPES[self.dtype]

    @property
    def is_short(self) -> bool:
        """Whether the elements are compared as floats that they are widened to."""
        return self.dtype in ("bf16", "f16")

    @property
    def compute_type(self) -> str:
        """The C++ type of what is compared."""
        return "float" if self.is_short else self.x_type
