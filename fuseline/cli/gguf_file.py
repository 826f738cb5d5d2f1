"""Reading a GGUF file from end to end, to say in our words what it lacks.

The gguf package takes slices of a memory map and looks at no length, so that a file that was cut
short ends in whatever numpy says of an array that is smaller than expected.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gguf
import numpy as np

from fuseline.cli.huggingface import first_line
from fuseline.errors import NOT_GGUF

if TYPE_CHECKING:
    import numpy.typing as npt


class CutShortError(Exception):
    """The file ends before `part` does, which needs the bytes up to `end`."""

    def __init__(self, part: str, size: int, end: int) -> None:
        super().__init__(part, size, end)
        self.found = f"it ends at byte {size}, inside {part}"
        self.expected = f"at least {end} bytes"


class _Reader(gguf.GGUFReader):
    """Checks every slice of the file before it is taken."""

    part = "its header"

    def _get(
        self,
        offset: int,
        dtype: npt.DTypeLike,
        count: int = 1,
        override_order: Literal["I", "S", "<"] | None = None,
    ) -> npt.NDArray[Any]:
        end, size = int(offset) + np.dtype(dtype).itemsize * int(count), len(self.data)
        if end > size:
            raise CutShortError(self.part, size, end)
        return super()._get(offset, dtype, count, override_order)

    def _build_tensors(self, start_offs: int, fields: list[gguf.ReaderField]) -> None:
        for field in fields:  # one by one, to know which it is
            self.part = f"the tensor {field.name}"
            super()._build_tensors(start_offs, [field])
        super()._build_tensors(start_offs, fields)


def check_whole(path: Path) -> None:
    """Read the descriptions of all tensors, and see that the file holds what they describe.

    Raises:
        LoadError: FL0804, for a file that is cut short or contradicts itself.
    """
    try:
        _Reader(path)
    except CutShortError as cut:
        raise NOT_GGUF.error(where=str(path), found=cut.found, expected=cut.expected) from cut
    except (ValueError, KeyError, IndexError, TypeError, OSError, OverflowError) as error:
        found = f"descriptions that cannot be read ({first_line(error)})"
        raise NOT_GGUF.error(where=str(path), found=found) from error
