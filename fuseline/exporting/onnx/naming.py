"""Names of what a model takes and gives, and of the dims that vary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import sympy

from fuseline.artifact.trees import Tree
from fuseline.ir.types import Dim, format_dim


def output_names(tree: Tree) -> list[str]:
    """A name for each leaf of a result: its keys, else ``output`` and its number."""
    found: list[str] = []
    for path in _paths(tree, ()):
        words = [str(word) for word in path]
        found.append(".".join(words if words and not words[0].isdecimal() else ["output", *words]))
    return found


def _paths(tree: Tree, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    if tree.kind in ("leaf", "constant"):
        yield path
        return
    keys: Sequence[str | int] = tree.keys or range(len(tree.children))
    for key, child in zip(keys, tree.children, strict=True):
        yield from _paths(child, (*path, key))


def dim_text(extent: Dim, names: Mapping[str, str]) -> str:
    """A dim as a ``dim_param``."""
    if isinstance(extent, int):
        return str(extent)
    symbols: Any = extent.free_symbols
    swap = {s: sympy.Symbol(names[str(s)]) for s in symbols if str(s) in names}
    return format_dim(cast("Any", extent).subs(swap))


__all__ = ["dim_text", "output_names"]
