"""Text that every machine with Python has: the standard library's documentation strings.

A token is a byte; `END` stands behind each text. One module in ten is held out, chosen by a digest
of its name, so that the split is the same on every machine. Modules come and go between versions of
Python; nothing else makes two corpora differ.
"""

from __future__ import annotations

import ast
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from examples.latent_moe.model import END

LEFT_OUT = frozenset({"site-packages", "test", "tests", "idlelib", "lib2to3", "distutils"})
"""Folders that are not read: other people's packages, tests, and what later versions removed."""

HELD_OUT_ONE_IN = 10


def documentation(*, held_out: bool, modules: int | None = None) -> Tensor:
    """The tokens of one side of the split, of its first modules by name or of all."""
    root = Path(sysconfig.get_path("stdlib"))
    names = [path.relative_to(root) for path in root.rglob("*.py")]
    names = sorted(n.as_posix() for n in names if not LEFT_OUT.intersection(n.parts))
    names = [name for name in names if is_held_out(name) == held_out]
    found: dict[str, None] = {}
    for name in names[:modules]:
        found.update(dict.fromkeys(docstrings(root / name)))
    tokens: list[int] = []
    for text in found:
        tokens += [*text.encode(), END]
    return torch.tensor(tokens)


def is_held_out(name: str) -> bool:
    """Whether a module, given as its path below the standard library, is not trained on."""
    return zlib.crc32(name.encode()) % HELD_OUT_ONE_IN == 0


def docstrings(path: Path) -> Iterator[str]:
    """The documentation of a module, its classes and its functions, as they stand in it."""
    waiting: list[ast.AST] = [ast.parse(path.read_bytes())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text
        inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        waiting.extend(reversed(inner))


def windows(tokens: Tensor, length: int) -> Tensor:
    """All tokens, cut into rows of `length` and the one that follows; the rest is dropped."""
    count = (len(tokens) - 1) // length
    starts = torch.arange(count) * length
    return tokens[starts.unsqueeze(1) + torch.arange(length + 1)]


class Bigram:
    """How likely a token is after another: counts, smoothed towards how likely it is at all."""

    def __init__(self, tokens: Tensor, vocabulary: int = END + 1, smoothing: float = 10.0) -> None:
        pairs = torch.bincount(tokens[:-1] * vocabulary + tokens[1:], minlength=vocabulary**2)
        counts = pairs.view(vocabulary, vocabulary).double()
        single = (counts.sum(0) + 1) / (counts.sum() + vocabulary)
        total = counts.sum(1, keepdim=True) + smoothing
        self.log_probability = ((counts + smoothing * single) / total).log()

    def loss(self, rows: Tensor) -> float:
        """Nats per token, of rows as `windows` cuts them."""
        return -float(self.log_probability[rows[:, :-1], rows[:, 1:]].mean())
