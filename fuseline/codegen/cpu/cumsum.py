"""The kernel of running sums."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.codegen.cpu.cpp import CPP_TYPES
from fuseline.codegen.kernel import KernelTemplate

FLOATS = ("f64", "f32", "bf16", "f16")


@dataclass(frozen=True)
class CumsumKernel(KernelTemplate, template="cpp/cumsum.cpp.jinja"):
    """``y[o, j, i] = sum(x[o, :j + 1, i])`` over ``[outer, n, inner]``; y is dense.

    Floating numbers keep their type, as in `torch.cumsum`; others are added as i64.
    """

    varies = ""

    dtype: str

    @property
    def buffers(self) -> tuple[str, ...]:
        """The names of ``buf``, in order."""
        return ("x", "y")

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of ``dim``, in order."""
        return ("outer", "inner", "n", "x_o", "x_i", "x_j")

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        return f"Running sums of {self.dtype}"

    @property
    def x_type(self) -> str:
        """The C++ type of x."""
        return CPP_TYPES[self.dtype]

    @property
    def y_type(self) -> str:
        """The C++ type of y."""
        return self.x_type if self.dtype in FLOATS else "int64_t"

    @property
    def is_short(self) -> bool:
        """Whether the elements are 16-bit floating numbers, widened for the sum."""
        return self.dtype in ("bf16", "f16")

    @property
    def is_bool(self) -> bool:
        """Whether any byte but 0 counts as 1."""
        return self.dtype == "bool"

    @property
    def sum_type(self) -> str:
        """The C++ type of the sum; one that wraps around for integers."""
        if self.is_short:
            return "float"
        return "double" if self.dtype in FLOATS else "uint64_t"
