"""One compilation of a search: what of it is left out, and what a check says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from fuseline.passes.record import Run


@dataclass(frozen=True)
class Trial:
    """What of a compilation is done; by default all of it.

    Attributes:
        limit: only the first so many rewrites.
        skip: names of rewrites that are left out.
        only: names of the only rewrites; None: all.
        passes: only the first so many passes.
        plain: symbols of kernels in whose place torch runs.
    """

    limit: int | None = None
    skip: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None
    passes: int | None = None
    plain: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What a check says of a trial.

    Attributes:
        bad: whether it fails; None where that cannot be told.
        said: why, in a line.
        failed: the pass that raised, where one did.
        raised: the kind of error that was raised, where one was.
        excess: how many times as large as allowed the error of the numbers is.
        run: the record of the passes, as far as there is one.
        kernels: the kernels that were built, by symbol, where they were asked for.
    """

    bad: bool | None
    said: str
    failed: str = ""
    raised: str = ""
    excess: float = 0.0
    run: Run | None = None
    kernels: Mapping[str, Kernel] = field(default_factory=dict[str, "Kernel"])


@dataclass(frozen=True)
class Kernel:
    """A generated kernel: its template, and the first place that it works for."""

    symbol: str
    template: str
    where: str


Check: TypeAlias = Callable[[Trial], Verdict]
