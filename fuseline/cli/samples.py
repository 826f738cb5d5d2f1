"""Samples of a model as it runs here, for the page that `--html` writes."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fuseline.cli.compiling import Compiled
    from fuseline.cli.models import LoadedModel
    from fuseline.cli.output import Output
    from fuseline.config import Config

RUNS = 10
"""Calls of each kind, where the command line does not say."""


def add_to_page(
    config: Config, loaded: LoadedModel, compiled: Compiled, out: Output, runs: int = RUNS
) -> None:
    """Time a model that has been compiled, and its steps, and show that on its page, if it has one.

    Raises:
        UsageError: FL0101, if the page cannot be written.

    """
    if config.html is None:
        return
    import torch

    from fuseline.debug.machine import machine_of
    from fuseline.debug.page.page import page_at
    from fuseline.debug.page.samples import take

    page = page_at(config.html)
    page.title = loaded.name
    with out.step("taking samples"), torch.no_grad():
        take(
            page,
            lambda: compiled(*loaded.args, **loaded.kwargs),
            loaded.run,
            runs,
            cache(machine_of),
        )
    out.note(f"the page is {page.path}")


__all__ = ["add_to_page"]
