"""Where a graph ends because of what a tensor holds, as before a loop over chosen experts."""

from __future__ import annotations

from torch import fx

from fuseline import _torch
from fuseline.frontend.expert_loops import (
    counts_tokens,
    function_around,
    names_in,
    runs_over_experts,
)
from fuseline.frontend.places import is_library
from fuseline.report import Site

_SIGNS = ("dynamic shape operator", "data-dependent", "data dependent", "tensor.item", "tolist")
"""What Dynamo says of a break whose cause is the contents of a tensor, in lower case."""

_CHOICE = "topk"

_EXPERTS = (
    "the program goes on by what a tensor holds, and these experts run in eager; written as "
    "grouped or gathered products they are traced, which models of transformers that leave the "
    'choice do after set_experts_implementation("grouped_mm")'
)

_OTHER = (
    "the program goes on by what a tensor holds, and what is done by that runs in eager, until the "
    "next graph"
)


def chooses(module: fx.GraphModule) -> bool:
    """Whether a graph chooses the best of several, as a router does."""
    return any(_torch.name_of_target(n) == _CHOICE for n in module.graph.nodes)


def ends_by_data(cause: _torch.Break) -> bool:
    """Whether a graph ended because the program goes on by what a tensor holds."""
    return any(sign in cause.reason.lower() for sign in _SIGNS)


def source_of(cause: _torch.Break) -> str:
    """The file and line of the user's code where a graph ended."""
    found = _frames(cause)
    return f"{found[-1][0].rpartition('/')[2]}:{found[-1][1]}" if found else ""


def untraced(cause: _torch.Break, *, chosen: bool) -> Site | None:
    """The miss for a graph that ended by data behind a choice: of experts, where a loop runs there.

    ``chosen``: a graph of the same program chooses. Dynamo leaves a function alone when it cannot
    trace a loop in it; then the choice is in no graph, but in the function's source.
    """
    frames = _frames(cause)
    if not chosen and not any(_CHOICE in names_in(function_around(*f)) for f in frames[-1:]):
        return None
    said = cause.reason.strip().split("\n", 1)[0]
    inner = range(len(frames))[-1:]
    loop = any(runs_over_experts(*f, inside=i not in inner) for i, f in enumerate(frames))
    if loop or any(counts_tokens(*f) for f in frames[-1:]):
        return Site("moe", source_of(cause), "missed", f"{said}: {_EXPERTS}")
    return Site("graph_break", source_of(cause), "missed", f"{said}: {_OTHER}")


def _frames(cause: _torch.Break) -> list[tuple[str, int]]:
    """The files and lines of the user's code, the innermost last."""
    return [frame for frame in cause.frames if not is_library(frame[0])]
