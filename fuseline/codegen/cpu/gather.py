"""Kernels that move rows by index, and the index of the largest element."""

from __future__ import annotations

from dataclasses import dataclass

from fuseline.codegen.cpu.cpp import CPP_TYPES
from fuseline.codegen.kernel import KernelTemplate


@dataclass(frozen=True)
class GatherKernel(KernelTemplate, template="cpp/gather.cpp.jinja"):
    """``y[p] = x[p x_strides + sum of wrapped(index_j[p index_strides_j]) * step_j]``, by rows.

    p runs over the dims of the result, whose strides are 0 in whatever does not have the dim;
    a row of ``width`` elements lies side by side in x and in y, which is dense. So this is
    indexing by any number of tensors, `torch.index_select`, `torch.gather` and embedding alike.

    Attributes:
        dtype: of the elements, which are only moved.
        indices: the type of each index, ``i64`` or ``i32``.
        rank: how many dims p has, at least 1.
        wraps: whether negative indices count from the end; other ones outside are a fault.
    """

    varies = ""

    dtype: str
    indices: tuple[str, ...]
    rank: int
    wraps: bool

    @property
    def buffers(self) -> tuple[str, ...]:
        """The names of ``buf``, in order."""
        return (*(f"index_{j}" for j in range(len(self.indices))), "x", "y")

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of ``dim``, in order."""
        names = ["extent", "x", *(f"index_{j}" for j in range(len(self.indices)))]
        walks = (f"{name}_{r}" for name in names for r in range(self.rank))
        axes = (f"{name}_{j}" for j in range(len(self.indices)) for name in ("size", "step"))
        return (*walks, *axes, "width")

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        return f"Rows of {self.dtype} by {' and '.join(self.indices)}"

    @property
    def x_type(self) -> str:
        """The C++ type of the elements."""
        return CPP_TYPES[self.dtype]

    @property
    def index_types(self) -> list[str]:
        """The C++ type of each index."""
        return [CPP_TYPES[index] for index in self.indices]


@dataclass(frozen=True)
class IndexWriteKernel(KernelTemplate, template="cpp/index_write.cpp.jinja"):
    """``into[o, i, index[s], :width] = src[o, i, s, :width]``: ``index_copy_`` along any axis.

    ``[outer, inner, slices, width]`` covers a cache ``[B, Hk, Smax, D]`` written along Smax, and
    ``[B, 1, Smax, H * D]`` written along the second axis. Strides are in elements; those of
    ``width`` are 1; ``into_at`` is where what is written along begins. ``rows`` is the extent of
    the axis; an index outside is a fault of the call. Of equal indices the last counts.
    """

    varies = ""

    dtype: str
    index: str = "i64"

    @property
    def buffers(self) -> tuple[str, ...]:
        """The names of ``buf``, in order."""
        return ("index", "src", "into")

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of ``dim``, in order."""
        strides = (f"{name}_{axis}" for name in ("src", "into") for axis in ("o", "i", "s"))
        return ("outer", "inner", "slices", "width", "rows", *strides, "into_at")

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        return f"Write slices of {self.dtype} by {self.index}"

    @property
    def x_type(self) -> str:
        """The C++ type of the elements."""
        return CPP_TYPES[self.dtype]

    @property
    def index_type(self) -> str:
        """The C++ type of the index."""
        return CPP_TYPES[self.index]


@dataclass(frozen=True)
class ArgmaxKernel(KernelTemplate, template="cpp/argmax.cpp.jinja"):
    """``y[r] = argmax(x[r, :width])`` for f32, bf16 or f16; y is ``i64``, width at least 1.

    The first among equals; the first NaN where there is one. Rows begin at multiples of ``x_step``.
    Two launches with the same arguments (`launches`); scratch is `scratch_bytes`.
    """

    varies = ""

    dtype: str

    @property
    def buffers(self) -> tuple[str, ...]:
        """The names of ``buf``, in order."""
        return ("x", "y", "scratch")

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of ``dim``, in order."""
        return ("rows", "width", "x_step")

    def launches(self) -> tuple[ArgmaxKernel, ...]:
        """The kernels to launch, one after the other, with the same buffers and dims."""
        return (self, JoinArgmaxKernel(self.dtype))

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        return f"Argmax of rows of {self.dtype}"

    @property
    def x_type(self) -> str:
        """The C++ type of x."""
        return CPP_TYPES[self.dtype]


class JoinArgmaxKernel(ArgmaxKernel, template="cpp/argmax_join.cpp.jinja"):
    """The second launch of `ArgmaxKernel`."""


def argmax_scratch_bytes(rows: int, workers: int) -> int:
    """The scratch of `ArgmaxKernel`, in bytes: 16, and 16 for each row and worker."""
    return 16 + 16 * rows * workers
