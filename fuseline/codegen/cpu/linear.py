"""Linear products for target cpu: the contexts of the two loop orders.

`linear_choice.py` says which one is used, and with which blocking, for which token counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, TypeAlias

from fuseline.codegen.cpu.cpp import CPP_TYPES
from fuseline.codegen.kernel import KernelTemplate
from fuseline.ir.types import Dim

Activation: TypeAlias = Literal[
    "silu", "gelu_tanh", "gelu_erf", "relu", "relu2", "sigmoid", "tanh", "softplus"
]
FLOATS = ("f32", "bf16", "f16")
WIDEST = 16
"""Floats in the widest vector: scratch is sized for it, whatever the machine that runs."""


@dataclass(frozen=True)
class LinearKernel(KernelTemplate):
    """``y[T, N] = epilogue(x[T, K] @ w[N, K].T)``, accumulated in float32.

    Buffers, in order:
        x         ``[T, K]`` of ``x_dtype``, elements of a row side by side
        w         ``[N, K]`` dense of ``weight_dtype``; gated: ``[2 N, K]``, gate rows first;
                  with ``columns`` its transpose, ``[K, N]``
        bias      ``[N]`` (gated ``[2 N]``) of ``weight_dtype``, if ``bias``
        residual  ``[T, N]`` of ``dtype``, if ``residual``; may be y
        y...      one ``[T, outputs[i]]`` of ``out_dtype`` for each of ``outputs``
        scratch   ``scratch_bytes(T, workers)``
    Dims, in order:
        T, row stride of x, row stride of residual (if any), row stride of each y

    Numerics: ``p = round(x @ w + bias)``; gated: ``p = round(round(act(gate)) * up)``, otherwise
    with an activation ``p = round(act(p))``; with a residual ``p = round(r + p)``; ``round`` is to
    ``dtype``. y holds p as ``out_dtype``. Results do not depend on the number of workers. Any K and
    N of at least 1, and any T from ``min_tokens`` to ``max_tokens``, and 0. Where the processor
    multiplies bfloat16, what is too small for a normal number counts as 0, as with torch's own.

    Attributes:
        k: width of x.
        outputs: widths of the results; N is their sum. Gated: one, the width of gate.
        columns: whether the weights lie ``[K, N]``, not gated.
        dtype: what products round to.
        x_dtype, weight_dtype, out_dtype: element types; by default ``dtype``.
        min_tokens, max_tokens: the range of T; ``None`` for no upper end.
        rows, tokens: the register tile: weight rows and rows of x.
        wide: the tile where vectors have 16 floats, and there are 32 registers of them; by default
            the same.
        strip: columns that the epilogue takes at once.
        k_block: elements of K after which the other panels of x have their turn.
        prefetch: elements ahead of the weights in use that are asked for; 0 for none. For many
            tokens: whether the next rows are.
    """

    k: int
    outputs: tuple[int, ...]
    dtype: str
    x_dtype: str = ""
    weight_dtype: str = ""
    out_dtype: str = ""
    bias: bool = False
    activation: Activation | None = None
    gated: bool = False
    residual: bool = False
    min_tokens: int = 1
    max_tokens: int | None = None
    rows: int = 3
    tokens: int = 4
    wide: tuple[int, int] | None = None
    strip: int = 32
    k_block: int = 256
    prefetch: int = 0
    columns: bool = False

    varies = "it has a form of its own for few tokens"

    def __post_init__(self) -> None:
        """Fill in the element types; a geometry without a kernel is a ``ValueError``."""
        for name in ("x_dtype", "weight_dtype", "out_dtype"):
            object.__setattr__(self, name, getattr(self, name) or self.dtype)
        types = (self.dtype, self.x_dtype, self.weight_dtype, self.out_dtype)
        if not set(types) <= set(FLOATS):
            raise ValueError(f"no linear kernel for {', '.join(types)}")
        if self.k < 1 or not self.outputs or min(self.outputs) < 1:
            raise ValueError(f"no linear kernel for K = {self.k}, N = {self.outputs}")
        if self.gated and (len(self.outputs) != 1 or self.activation is None):
            raise ValueError("a gated product has one output and an activation")
        if self.gated and self.columns:
            raise ValueError("no gated product of weights that lie [K, N]")
        if self.k_block % (2 * WIDEST):
            raise ValueError(f"k_block {self.k_block} is not a multiple of {2 * WIDEST}")

    @property
    def n(self) -> int:
        """Columns of all results together."""
        return sum(self.outputs)

    @property
    def x_type(self) -> str:
        """The C++ type of x."""
        return CPP_TYPES[self.x_dtype]

    @property
    def weight_type(self) -> str:
        """The C++ type of the weights."""
        return CPP_TYPES[self.weight_dtype]

    @property
    def round_type(self) -> str:
        """The C++ type that products are rounded to."""
        return CPP_TYPES[self.dtype]

    @property
    def out_type(self) -> str:
        """The C++ type of the results."""
        return CPP_TYPES[self.out_dtype]

    @property
    def pairs(self) -> bool:
        """Whether weights widen two at a time (see `_tile.h.jinja`)."""
        return self.weight_dtype == "bf16"

    @property
    def panel_sizes(self) -> tuple[int, ...]:
        """The numbers of rows that panels of x have, for any T of the range (see `Panels`)."""
        return _panel_sizes(self.tokens, self.min_tokens, self.max_tokens)

    @property
    def output_ends(self) -> tuple[int, ...]:
        """The column after the last of each result."""
        return tuple(accumulate(self.outputs))

    @property
    def grain(self) -> int:
        """Columns that stay together when the work is shared out: whole cache lines of y."""
        return 16

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        terms = [f"{self.n} x {self.k} {self.weight_dtype}" + ", transposed" * self.columns]
        terms += ["bias"] * self.bias
        terms += [f"{self.activation} gate" if self.gated else str(self.activation)] * bool(
            self.activation
        )
        terms += ["residual"] * self.residual
        return f"linear: {', '.join(terms)}; x {self.x_dtype}, y {self.out_dtype}"

    def scratch_bytes(self, tokens: Dim, workers: Dim) -> Dim:
        """Bytes of scratch for so many tokens and workers (numbers or expressions)."""
        raise NotImplementedError

    @property
    def _padded(self) -> int:
        return -(-self.k // (2 * WIDEST)) * 2 * WIDEST

    @property
    def _halves(self) -> int:
        return 2 if self.gated else 1


@dataclass(frozen=True)
class LinearSmallKernel(LinearKernel, template="cpp/linear_small.cpp.jinja"):
    """Few tokens: the weights are streamed once, in ``rows`` far streams a worker."""

    def scratch_bytes(self, tokens: Dim, workers: Dim) -> Dim:
        """Bytes of scratch for so many tokens and workers (numbers or expressions)."""
        waiting = self.rows * WIDEST
        per_token = self._padded + self._halves * self.rows * self.strip + waiting
        return (tokens * per_token + self.tokens * waiting) * workers * 4


@dataclass(frozen=True)
class LinearColumnsKernel(LinearKernel, template="cpp/linear_columns.cpp.jinja"):
    """Few tokens and weights ``[K, N]``: streamed once, ``streams`` rows at a time, in runs of
    ``n_block`` columns; the rows lie side by side, or ``far`` from one another. With
    ``token_block`` weights are streamed anew for every so many tokens.
    """

    columns: bool = True
    streams: int = 4
    far: bool = False
    n_block: int = 512
    token_block: int = 0

    def why_varies(self) -> str:
        """For one token, rows that lie far apart are added in another order."""
        every = self.min_tokens == 1 and self.max_tokens is None
        return "" if every and not self.far and self.token_block else self.varies

    def __post_init__(self) -> None:
        """Refuse weights that lie the other way."""
        super().__post_init__()
        if not self.columns:
            raise ValueError("the weights lie [K, N]")

    def scratch_bytes(self, tokens: Dim, workers: Dim) -> Dim:
        """Bytes of scratch for so many tokens and workers (numbers or expressions)."""
        tokens = self.token_block or tokens
        return tokens * (self.k + 2 * self.n_block) * workers * 4


@dataclass(frozen=True)
class LinearLargeKernel(LinearKernel, template="cpp/linear_large.cpp.jinja"):
    """Many tokens: groups of ``strip`` weight rows (whole tiles of them) against blocks of x.

    Attributes:
        token_block: rows of x that are packed at once; twice as many where they stay bfloat16.
        library_tokens: from so many tokens on the host's ``sgemm`` does the product if there is
            one (everything but the result must be float32); 0 for never.
    """

    k_block: int = 1024
    strip: int = 48
    wide: tuple[int, int] | None = (4, 5)
    token_block: int = 64
    library_tokens: int = 0

    def __post_init__(self) -> None:
        """Refuse strips that do not hold whole steps, and types that the library does not take."""
        super().__post_init__()
        for rows, _ in self._tiles:
            if self.strip % rows:
                raise ValueError(f"strip {self.strip} is not a multiple of {rows} rows")
        if self.library_tokens and {self.x_dtype, self.weight_dtype} != {"f32"}:
            raise ValueError("the library's product is one of float32")

    def why_varies(self) -> str:
        """The library chooses its blocks by the number of tokens."""
        if self.library_tokens:
            return f"from {self.library_tokens} tokens on the library does its product"
        return "" if self.min_tokens == 1 and self.max_tokens is None else self.varies

    @property
    def panel_sizes(self) -> tuple[int, ...]:
        """As for few tokens, but T may be cut in parts of at least ``least_tokens``."""
        first = min(self.min_tokens, self.least_tokens)
        sizes = {n for _, most in self._tiles for n in _panel_sizes(most, first, None)}
        return tuple(sorted(sizes))

    @property
    def least_tokens(self) -> int:
        """Tokens are shared out among the workers, or cut in blocks, in no smaller parts."""
        return min(16, self.token_block // 2)

    @property
    def _tiles(self) -> tuple[tuple[int, int], ...]:
        """The tiles that a machine may use."""
        return ((self.rows, self.tokens), self.wide or (self.rows, self.tokens))

    @property
    def library_block(self) -> tuple[int, int]:
        """Tokens and weight rows of one call of the library."""
        return (128, 960) if self.columns else (512, 240)

    def scratch_bytes(self, tokens: Dim, workers: Dim) -> Dim:
        """Bytes of scratch for so many workers, whatever the number of tokens."""
        del tokens
        totals = max(self.strip // r * 4 * -(-r // 4) for r, _ in self._tiles)
        block = self.token_block * (2 if self.weight_dtype == self.x_dtype == "bf16" else 1)
        floats = self.token_block * self._padded + block * (totals + self._halves * self.strip)
        floats += self.strip * self.k * self.columns
        if self.library_tokens:
            block, rows = self.library_block
            floats = max(floats, self._halves * block * rows)
        return workers * 4 * floats


def _panel_sizes(most: int, first: int, last: int | None) -> tuple[int, ...]:
    """The numbers of rows of panels of at most ``most``, for ``first`` to ``last`` rows in all."""
    first = max(first, 1)
    steady = max(most * (most - 1), first)  # from here on, the two largest only
    end = steady + most + 1
    end = end if last is None else min(last + 1, end)
    panels = [(t, -(-t // most)) for t in range(first, end)]
    return tuple(sorted({n for t, p in panels for n in (t // p, -(-t // p))}))
