"""The ordered list of passes: the compiler's table of contents."""

from __future__ import annotations

from fuseline.passes.rewrite import Pass


def default_pipeline() -> list[Pass]:
    """The passes that every compilation runs, in order."""
    return [
        # clean up: one spelling of casts, views, transposes and constants
        # raise: what a model author would name
        # fuse: what one kernel does
    ]
