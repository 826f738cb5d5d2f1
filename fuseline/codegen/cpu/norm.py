"""Row norms: RMS and layer norm, with the residual sum before them where there is one.

Rows are addressed by two levels (``outer`` and ``inner``), so that a norm over the heads of a
slice of a merged projection needs no copy.
"""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.codegen.cpu.cpp import CPP_TYPES
from fuseline.codegen.kernel import KernelTemplate
from fuseline.codegen.norms import Norm, NormKind
from fuseline.ir.ops.raised import CastPoint


def norm_flags(kind: NormKind, cast: CastPoint, weight: str | None, bias: str | None) -> str:
    """The flags of ``fl_normed`` as a C++ expression."""
    flags = ["FL_LAYER"] * (kind == "layer") + ["FL_LAST"] * (cast == "last")
    flags += ["FL_WEIGHT"] * (weight is not None) + ["FL_BIAS"] * (bias is not None)
    return " | ".join(flags) or "0"


def float_literal(value: float) -> str:
    """A C++ float of the exact value of the Python float, rounded once to float32."""
    return f"{value!r}f" if "." in repr(value) or "e" in repr(value) else f"{value!r}.0f"


@dataclass(frozen=True)
class NormKernel(Norm, KernelTemplate, template="cpp/row_norm.cpp.jinja"):
    """A norm of rows.

    The buffers and dims, in order, are ``buffers`` and ``dims``: rows are numbered
    ``o * inner + i``, and row (o, i) of an operand begins at ``o * outer stride + i * inner
    stride`` (in elements); the elements of a row lie side by side. sum may be x or r, and y may be
    x, if their strides are equal.
    """

    varies = ""

    @property
    def buffers(self) -> tuple[str, ...]:
        """The names of ``buf``, in order."""
        names = ["x", *["residual"] * self.residual, *["weight"] * (self.weight is not None)]
        names += [*["bias"] * (self.bias is not None), *["sum"] * self.residual, "y"]
        return tuple(names)

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of ``dim``, in order."""
        rows = ["x", *["residual", "sum"] * self.residual, "y"]
        return (
            "outer",
            "inner",
            *(f"{row}_{level}" for row in rows for level in ("outer", "inner")),
        )

    @property
    def slot(self) -> dict[str, int]:
        """The index of each buffer."""
        return {name: i for i, name in enumerate(self.buffers)}

    @property
    def how(self) -> str:
        """The flags of the norm."""
        return norm_flags(self.kind, self.cast, self.weight, self.bias)

    @property
    def x_type(self) -> str:
        """The C++ type of x."""
        return CPP_TYPES[self.dtype]

    @property
    def out_type(self) -> str:
        """The C++ type of y."""
        return CPP_TYPES[self.out]

    @property
    def weight_type(self) -> str:
        """The C++ type of the weight, empty without one."""
        return CPP_TYPES.get(self.weight or "", "")

    @property
    def bias_type(self) -> str:
        """The C++ type of the bias, empty without one."""
        return CPP_TYPES.get(self.bias or "", "")

    @property
    def short_nans(self) -> int:
        """1 if everything read is bf16 (see _rows.h)."""
        return int({self.dtype, self.weight or "bf16", self.bias or "bf16"} == {"bf16"})

    @property
    def eps_literal(self) -> str:
        """``eps`` in C++."""
        return float_literal(self.eps)

    @property
    def offset_literal(self) -> str:
        """``offset`` in C++."""
        return float_literal(self.offset)
