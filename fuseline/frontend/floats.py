"""Python floats that Dynamo turned into inputs.

Each arrives as a 0-d float64 tensor, whose ``item()`` gives a symbolic float to the graph.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fuseline.frontend.places import value_of


def float_inputs(module: fx.GraphModule) -> dict[int, fx.Node]:
    """For each such input its number, and the node that reads its value."""
    found: dict[int, fx.Node] = {}
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    for index, node in enumerate(placeholders):
        value = value_of(node)
        if not (isinstance(value, Tensor) and value.dtype == torch.float64 and value.dim() == 0):
            continue
        readers = list(node.users)
        if len(readers) == 1 and isinstance(value_of(readers[0]), torch.SymFloat):
            found[index] = readers[0]
    return found
