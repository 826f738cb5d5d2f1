"""Loops over experts whose turns were all traced: what the graph must show of them.

From a loop's source it is known that a turn without rows does nothing to Python's values. The graph
shows the rest: that a loop over the experts that are hit turns over those with anything in a
one-hot mask, that each turn looks at its expert's part of that mask, that it writes to nothing but
the rows it finds there, and that rows which were taken to be some are those rows.
"""

from __future__ import annotations

import inspect
import operator
from typing import Any, cast

from torch import Tensor, fx
from torch._ops import HigherOrderOperator

from fuseline import _torch
from fuseline._torch import Lines, Turns
from fuseline.frontend.idle_turns import loop_asking, loop_over
from fuseline.frontend.places import frames_of, value_of

_MARK = "fuseline_turns"
"""In the meta of what a loop is over: the loop, its mask, and how many turns were traced."""

_ROWS = {"where", "nonzero"}
_SAME = {"squeeze", "view", "reshape", "flatten", "to", "bool", "long"}
_IN_PLACE = {
    getattr(operator, f"i{name}")
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or",
                 "xor", "lshift", "rshift")
}  # fmt: skip


class Judge:
    """Says of which loops all turns may be traced, from their source and the graph before them."""

    def turns(self, node: fx.Node, file: str, line: int) -> tuple[Lines, int] | None:
        """The loop at a line over the experts that a node holds, and how many there can be."""
        mask, loop = _mask_of(node), loop_over(file, line)
        if mask is None or loop is None:
            return None
        count = _experts(mask)
        node.meta[_MARK] = (loop, mask, count)
        return loop, count

    def asked(self, file: str, line: int) -> Lines | None:
        """The loop, a turn of which asks at a line whether it has rows, and else does nothing."""
        return loop_asking(file, line)


def unproven(graph: fx.Graph, turns: Turns) -> str:
    """What keeps a graph from being the loops that were traced with all turns, if anything."""
    if not turns.loops:
        return ""
    if turns.changed:
        return turns.changed
    nodes = list(graph.nodes)
    for loop in turns.loops:
        inside = [n for n in nodes if _is_in(n, loop)]
        rows = {n for n in inside if _finds_rows(n)}
        written = {r for n in inside if (r := _rows_written(n, rows)) is not None}
        if any(_may_write(n) and _rows_written(n, rows) is None for n in inside):
            return f"a turn of the loop at line {loop.first} writes to more than its rows"
        if not _covers_masks(nodes, loop, rows, written):
            return f"the turns of the loop at line {loop.first} do not look at each expert"
        assumed = ((env, size) for at, env, size in turns.assumed if at == loop)
        if not all(any(_has_size(r, env, size) for r in written) for env, size in assumed):
            return f"the loop at line {loop.first} asks for other rows than those it adds to"
    return ""


# -- the mask that says which experts are hit -------------------------------------------------


def _mask_of(node: fx.Node) -> fx.Node | None:
    """The mask ``[experts, ...]`` whose hit experts a node holds: those with anything in it."""
    while (name := _name(node)) in ("flatten", "squeeze", "view", "reshape", "getitem"):
        inner = _argument(node, 0)
        if inner is None or not _keeps_all(node, name):
            return None
        node = inner
    if name not in ("nonzero", "argwhere"):
        return None
    hit = _argument(node, 0)
    if hit is None or _name(hit) not in ("gt", "greater", "ne", "not_equal"):
        return None
    total = _argument(hit, 0)
    if total is None or len(hit.args) != 2 or hit.args[1] != 0 or hit.kwargs:
        return None
    mask = _argument(total, 0)
    if mask is None or not _is_sum_of_others(total, len(_shape(mask))) or _indices(mask) is None:
        return None
    return mask if isinstance(_shape(mask)[0], int) else None


def _keeps_all(node: fx.Node, name: str) -> bool:
    """Whether a node has the numbers of a ``nonzero`` in another form, in their order."""
    given = node.args[1:]
    if node.kwargs:
        return False
    if name == "getitem":
        whole = (slice(None), 0)
        return given in ((0,), (whole,)) and (given == (whole,) or _is_tuple(node))
    if name == "squeeze":
        return given in ((-1,), (1,))
    return given in ((), (-1,), ((-1,),), ([-1],))


def _is_tuple(node: fx.Node) -> bool:
    """Whether what a node takes an item of is a tuple, as ``nonzero(as_tuple=True)`` gives it."""
    inner = _argument(node, 0)
    return inner is not None and isinstance(value_of(inner), tuple)


def _is_sum_of_others(node: fx.Node, rank: int) -> bool:
    """Whether a node is the sum over all dims but the first."""
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    known = set(node.kwargs) <= {"dim"} and len(node.args) <= 2
    if _name(node) != "sum" or not known or not isinstance(dims, (tuple, list)):
        return False
    return sorted(cast("int", d) % rank for d in dims) == list(range(1, rank))


def _indices(mask: fx.Node) -> fx.Node | None:
    """The choices, of which a mask ``[experts, ...]`` is one-hot; None where it is not."""
    turn, rank = _name(mask), len(_shape(mask))
    inner = _argument(mask, 0)
    if inner is None or _name(inner) != "one_hot":
        return None
    if turn == "permute":
        dims = mask.args[1] if len(mask.args) == 2 else mask.args[1:]
        first = dims[0] if isinstance(dims, (tuple, list)) and dims else None
        return _argument(inner, 0) if first in (rank - 1, -1) else None
    if turn == "transpose":
        swapped = {cast("int", d) % rank for d in mask.args[1:]}
        return _argument(inner, 0) if swapped == {0, rank - 1} else None
    return None


def _experts(mask: fx.Node) -> int:
    """How many classes of a one-hot mask can occur: those that the indices were chosen from."""
    classes, chosen = int(_shape(mask)[0]), _indices(mask)
    while chosen is not None and _name(chosen) in _SAME:
        chosen = _argument(chosen, 0)
    if chosen is None or _name(chosen) != "getitem" or chosen.args[1] != 1:
        return classes
    choice = _argument(chosen, 0)
    scores = None if choice is None or _name(choice) != "topk" else _argument(choice, 0)
    if choice is None or scores is None:
        return classes
    axis = choice.args[2] if len(choice.args) > 2 else choice.kwargs.get("dim", -1)
    width = _shape(scores)[cast("int", axis)]
    return min(classes, width) if isinstance(width, int) else classes


# -- what turns do ----------------------------------------------------------------------------


def _is_in(node: fx.Node, loop: Lines) -> bool:
    return any(f == loop.file and loop.first <= n <= loop.last for f, n in frames_of(node))


def _finds_rows(node: fx.Node) -> bool:
    """``torch.where(mask)`` or ``mask.nonzero(as_tuple=True)``."""
    return _name(node) in _ROWS and len(node.args) == 1


def _rows_written(node: fx.Node, rows: set[fx.Node]) -> fx.Node | None:
    """Where the rows were found to which a node adds, or which it writes; None for other nodes."""
    name = _name(node)
    if name in ("index_add", "index_add_") and len(node.args) == 4 and node.args[1] == 0:
        index: Any = node.args[2]
    elif name == "setitem":
        index = node.args[1]
    elif node.target in _IN_PLACE:  # of the rows of y[rows] += value, before they are written back
        there = _argument(node, 0)
        index = there.args[1] if there is not None and _name(there) == "getitem" else None
    else:
        return None
    found = _argument(index, 0) if isinstance(index, fx.Node) else None
    is_part = isinstance(index, fx.Node) and _name(index) == "getitem"
    return found if is_part and found in rows else None


def _may_write(node: fx.Node) -> bool:
    """Whether a call may write to what it is given, or do what a graph does not show."""
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    target: Any = node.target
    name = _name(node)
    if node.op == "call_module" or isinstance(target, HigherOrderOperator):
        return True
    if name == "setitem" or target in _IN_PLACE or node.kwargs.get("out") is not None:
        return True
    if name.endswith("_") and not name.endswith("__"):
        return True
    schema = getattr(target, "_schema", None)
    return (schema is not None and bool(schema.is_mutable)) or _works_in_place(node)


def _works_in_place(node: fx.Node) -> bool:
    """Whether a function was asked to give its result in place of what it reads."""
    if not inspect.isfunction(node.target):
        return bool(node.kwargs.get("inplace"))
    try:
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments
    except (TypeError, ValueError):
        return True
    return bool(given.get("inplace"))


def _covers_masks(
    nodes: list[fx.Node], loop: Lines, rows: set[fx.Node], written: set[fx.Node]
) -> bool:
    """Whether each time that a loop runs over the experts that are hit, its turns look at the rows
    of each, and at no others; true of a loop that is over something else.
    """
    runs: list[tuple[fx.Node, int, list[fx.Node]]] = []
    for node in nodes:
        of_node, mask, count = node.meta.get(_MARK, (None, node, 0))
        if of_node == loop:
            runs.append((mask, count, []))
        elif node in rows and runs:
            runs[-1][2].append(node)
    return not runs or (
        rows == {node for *_, found in runs for node in found} == written
        and all(
            [_number(mask, n) for n in found] == list(range(count)) for mask, count, found in runs
        )
    )


def _number(mask: fx.Node, rows: fx.Node) -> int | None:
    """The number of the expert, in whose part of a mask rows were found."""
    part = _argument(rows, 0)
    while part is not None and _name(part) in _SAME:
        part = _argument(part, 0)
    if part is None or _name(part) != "getitem" or _argument(part, 0) is not mask:
        return None
    number = part.args[1]
    if isinstance(number, (list, tuple)) and len(number) == 1:
        (number,) = number
    return number if isinstance(number, int) else None


def _has_size(rows: fx.Node, env: Any, size: Any) -> bool:
    """Whether a size is how many rows were found at a node."""
    found = value_of(rows)
    parts = cast("tuple[object, ...]", found) if isinstance(found, tuple) else ()
    sizes = [_torch.expression(p.shape[0]) for p in parts if isinstance(p, Tensor)]
    return env.replace(size) in sizes


# -- nodes ------------------------------------------------------------------------------------


def _argument(node: fx.Node, number: int) -> fx.Node | None:
    found = node.args[number] if len(node.args) > number else None
    return found if isinstance(found, fx.Node) else None


def _name(node: fx.Node) -> str:
    return _torch.name_of_target(node) if "call" in node.op else ""


def _shape(node: fx.Node) -> tuple[Any, ...]:
    value = value_of(node)
    return tuple(value.shape) if isinstance(value, Tensor) else ()
