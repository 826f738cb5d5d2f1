"""Row norms: RMS and layer norm, with the residual sum before them where there is one.

Rows are addressed by two levels (``outer`` and ``inner``), so that a norm over the heads of a
slice of a merged projection needs no copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fuseline.codegen.cpp import CPP_TYPES
from fuseline.codegen.kernel import KernelTemplate
from fuseline.ir.ops.raised import CastPoint

NormKind = Literal["rms", "layer"]

FLOAT_RANK = {"bf16": 0, "f16": 0, "f32": 1}


def promote(first: str, second: str) -> str:
    """Torch's type promotion of two of f32, bf16 and f16."""
    if first == second:
        return first
    return (
        "f32"
        if FLOAT_RANK[first] == FLOAT_RANK[second]
        else max(first, second, key=FLOAT_RANK.__getitem__)
    )


def norm_result(dtype: str, weight: str | None, bias: str | None, cast: CastPoint) -> str:
    """The dtype of a norm of ``dtype``: with ``before_weight`` torch promotes it by the weight."""
    if cast == "last":
        return dtype
    for other in (weight, bias):
        dtype = dtype if other is None else promote(dtype, other)
    return dtype


def norm_flags(kind: NormKind, cast: CastPoint, weight: str | None, bias: str | None) -> str:
    """The flags of ``fl_normed`` as a C++ expression."""
    flags = ["FL_LAYER"] * (kind == "layer") + ["FL_LAST"] * (cast == "last")
    flags += ["FL_WEIGHT"] * (weight is not None) + ["FL_BIAS"] * (bias is not None)
    return " | ".join(flags) or "0"


def float_literal(value: float) -> str:
    """A C++ float of the exact value of the Python float, rounded once to float32."""
    return f"{value!r}f" if "." in repr(value) or "e" in repr(value) else f"{value!r}.0f"


@dataclass(frozen=True)
class NormKernel(KernelTemplate, template="cpp/row_norm.cpp.jinja"):
    """``y = norm(x)`` over rows of ``width`` elements; with ``residual``, ``sum = x + r`` first.

    ``dtype`` is that of x, r and sum, ``weight`` and ``bias`` those of the operands or ``None``;
    y has the dtype ``out``. With ``weight_rows`` > 1 weight and bias are ``[weight_rows, width]``
    and row i uses row ``i % weight_rows``. The buffers and dims, in order, are ``buffers`` and
    ``dims``: rows are numbered ``o * inner + i``, and row (o, i) of an operand begins at
    ``o * outer stride + i * inner stride`` (in elements); the elements of a row lie side by side.
    sum may be x or r, and y may be x, if their strides are equal.
    """

    dtype: str
    width: int
    kind: NormKind = "rms"
    weight: str | None = None
    bias: str | None = None
    weight_rows: int = 1
    eps: float = 1e-6
    offset: float = 0.0
    cast: CastPoint = "before_weight"
    residual: bool = False

    @property
    def out(self) -> str:
        """The dtype of y."""
        return norm_result(self.dtype, self.weight, self.bias, self.cast)

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
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        op = "layer norm" if self.kind == "layer" else "RMS norm"
        return f"{'Add and ' if self.residual else ''}{op} of rows of {self.width} {self.dtype}"

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
