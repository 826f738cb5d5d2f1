"""Calls of torch's own libraries, where they do best: launched like a kernel, and never built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fuseline.codegen.kernel import KernelTemplate


@dataclass(frozen=True)
class LibraryKernel(KernelTemplate):
    """A function of `fuseline.runtime.library`.

    The launch's buffers are its operands (None where one is absent), then its ``results``: whole
    values, with their shapes and strides.

    Attributes:
        name: of the function.
        results: how many buffers it writes.
        attributes: its further arguments.

    """

    family = "library"

    name: str
    results: int = 1
    attributes: tuple[tuple[str, Any], ...] = ()

    @property
    def title(self) -> str:
        """What it does."""
        return f"{self.name} of torch"
