"""The one call of the compiler that the commands make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from fuseline.cli.models import Program
    from fuseline.report import Report


class Compiled(Protocol):
    """What compiling gives: something to call like the model, that reports what was done."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it; the first call with inputs of a kind compiles."""
        ...

    def report(self) -> Report:
        """What was compiled so far."""
        ...


def compile_program(program: Program, options: Mapping[str, str]) -> Compiled:
    """`fuseline.compile`, with options as they were typed.

    Raises:
        UsageError: FL0101 or FL0102, for an option that is wrong.
    """
    import fuseline

    return cast("Compiled", cast("Any", fuseline).compile(program, **options))
