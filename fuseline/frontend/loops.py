"""Loops over what a router chose, which no tracer follows: named where a graph ends before one."""

from __future__ import annotations

import ast
import linecache

from torch import fx

from fuseline import _torch
from fuseline.frontend.places import is_library
from fuseline.report import Site

_SIGNS = ("dynamic shape operator", "data-dependent", "data dependent", "tensor.item", "tolist")
"""What Dynamo says of a break whose cause is the contents of a tensor, in lower case."""

_CHOICE = "topk"

_ADVICE = (
    "the program goes on by what a tensor holds, and these experts run in eager; written as "
    "grouped or gathered products they are traced, which transformers' models do after "
    'set_experts_implementation("grouped_mm")'
)


def chooses(module: fx.GraphModule) -> bool:
    """Whether a graph chooses the best of several, as a router does."""
    return any(_torch.name_of_target(n) == _CHOICE for n in module.graph.nodes)


def ends_by_data(cause: _torch.Break) -> bool:
    """Whether a graph ended because the program goes on by what a tensor holds."""
    return any(sign in cause.reason.lower() for sign in _SIGNS)


def source_of(cause: _torch.Break) -> str:
    """The file and line of the user's code where a graph ended."""
    file, line = _frame(cause)
    return f"{file.rpartition('/')[2]}:{line}" if file else ""


def untraced_experts(cause: _torch.Break, *, chosen: bool) -> Site | None:
    """The miss for a graph that ended by data: of experts, where something was chosen.

    ``chosen``: a graph of the same program chooses. Dynamo leaves a function alone when it cannot
    trace a loop in it; then the choice is in no graph, but in the function's source.
    """
    if not chosen and _CHOICE not in _names(*_frame(cause)):
        return None
    said = cause.reason.strip().split("\n", 1)[0]
    return Site("moe", source_of(cause), "missed", f"{said}: {_ADVICE}")


def _frame(cause: _torch.Break) -> tuple[str, int]:
    own = [frame for frame in cause.frames if not is_library(frame[0])]
    return own[-1] if own else ("", 0)


def _names(file: str, line: int) -> set[str]:
    """The attributes and names that the function around a line reads."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return set()
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, functions) and node.lineno <= line <= (node.end_lineno or 0)
    ]
    if not around:
        return set()
    inner = max(around, key=lambda node: node.lineno)
    attributes = {n.attr for n in ast.walk(inner) if isinstance(n, ast.Attribute)}
    return attributes | {n.id for n in ast.walk(inner) if isinstance(n, ast.Name)}
