"""Loops over experts whose turns were all traced: what the graph must show of them.

From a loop's source it is known that a turn without rows does nothing to Python's values. The graph
shows the rest: that a loop over the experts that are hit turns over those with anything in a
one-hot mask, that each turn looks at its expert's part of that mask, that it writes to nothing but
the rows it finds there, and that rows which were taken to be some are those rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import CodeType
from typing import Any, cast

from torch import Tensor, fx

from fuseline import _torch
from fuseline._torch import Lines, Run, Turns
from fuseline.frontend.idle_turns import loop_asking, loop_over
from fuseline.frontend.places import frames_of, value_of
from fuseline.frontend.plain_code import only_computes

_ROWS = {"where", "nonzero"}
_SAME = {"squeeze", "view", "reshape", "flatten", "to", "bool", "long"}


class Judge:
    """Says of which loops all turns may be traced, from their source and the graph before them."""

    def turns(self, node: fx.Node, code: CodeType, line: int) -> Run | None:
        """The loop at a line over the experts that a node holds."""
        mask, loop = _mask_of(node), loop_over(code, line)
        if mask is None or loop is None:
            return None
        return Run(loop, mask, _experts(mask), len(_rows_found(node.graph.nodes, loop)))

    def asked(self, code: CodeType, line: int) -> Lines | None:
        """The loop, a turn of which asks at a line whether it has rows, and else does nothing."""
        return loop_asking(code, line)

    def only_computes(self, code: CodeType) -> bool:
        """Whether a function does nothing but compute what it returns, for all that it shows."""
        return only_computes(code)


def unproven(graph: fx.Graph, turns: Turns) -> str:
    """What keeps a graph from being the loops that were traced with all turns, if anything."""
    if not turns.loops or turns.against:
        return turns.against
    nodes = list(graph.nodes)
    if not {run.mask for run in turns.runs} <= set(nodes):
        return "a loop was traced in another graph"
    for loop in turns.loops:
        inside, rows = [n for n in nodes if _is_in(n, loop)], _rows_found(nodes, loop)
        written = {r for n in inside if (r := _rows_written(n, rows)) is not None}
        if not all(_only_computes(n) or _rows_written(n, rows) is not None for n in inside):
            return f"a turn of the loop at line {loop.first} may write to more than its rows"
        runs = [run for run in turns.runs if run.loop == loop]
        if runs and (set(rows) != written or not _cover_masks(runs, rows)):
            return f"the turns of the loop at line {loop.first} do not look at each expert"
        assumed = [a for a in turns.assumed if a.loop == loop]
        sizes = {a.env.replace(a.size) for a in assumed}
        if assumed and sizes != {size for r in written for size in _sizes(r)}:
            return f"the loop at line {loop.first} asks for other rows than those it adds to"
    if any(_is_written(run.mask, nodes) for run in turns.runs):
        return "what says which experts are hit is written to"
    return ""


# -- the mask that says which experts are hit -------------------------------------------------


def _mask_of(node: fx.Node) -> fx.Node | None:
    """The mask ``[experts, ...]`` whose hit experts a node holds: those with anything in it."""
    while (name := _torch.torch_name(node)) in ("flatten", "squeeze", "view", "reshape", "getitem"):
        inner = _argument(node, 0)
        if inner is None or not _keeps_all(node, name):
            return None
        node = inner
    if name not in ("nonzero", "argwhere"):
        return None
    hit = _argument(node, 0)
    if hit is None or _torch.torch_name(hit) not in ("gt", "greater", "ne", "not_equal"):
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
    if _torch.torch_name(node) != "sum" or not known or not isinstance(dims, (tuple, list)):
        return False
    return sorted(cast("int", d) % rank for d in dims) == list(range(1, rank))


def _indices(mask: fx.Node) -> fx.Node | None:
    """The choices, of which a mask ``[experts, ...]`` is one-hot; None where it is not."""
    turn, rank = _torch.torch_name(mask), len(_shape(mask))
    inner = _argument(mask, 0)
    if inner is None or _torch.torch_name(inner) != "one_hot":
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
    while chosen is not None and _torch.torch_name(chosen) in _SAME:
        chosen = _argument(chosen, 0)
    if chosen is None or _torch.torch_name(chosen) != "getitem" or chosen.args[1] != 1:
        return classes
    choice = _argument(chosen, 0)
    scores = None if choice is None or _torch.torch_name(choice) != "topk" else _argument(choice, 0)
    if choice is None or scores is None:
        return classes
    axis = choice.args[2] if len(choice.args) > 2 else choice.kwargs.get("dim", -1)
    width = _shape(scores)[cast("int", axis)]
    return min(classes, width) if isinstance(width, int) else classes


# -- what turns do ----------------------------------------------------------------------------


def _is_in(node: fx.Node, loop: Lines) -> bool:
    return any(f == loop.file and loop.first <= n <= loop.last for f, n in frames_of(node))


def _rows_found(nodes: Iterable[fx.Node], loop: Lines) -> list[fx.Node]:
    """Where turns of a loop look for rows, by ``torch.where(mask)`` or as ``nonzero`` does it."""
    looking = (n for n in nodes if _torch.torch_name(n) in _ROWS and len(n.args) == 1)
    return [n for n in looking if _is_in(n, loop)]


def _rows_written(node: fx.Node, rows: Sequence[fx.Node]) -> fx.Node | None:
    """Where the rows were found to which a node adds, or which it writes; None for other nodes."""
    name = _torch.torch_name(node)
    if name in ("index_add", "index_add_") and len(node.args) == 4 and node.args[1] == 0:
        index: Any = node.args[2]
    elif name == "setitem":
        index = node.args[1]
    elif name == "iadd":  # to the rows of y[rows] += value, before they are written back
        there = _argument(node, 0)
        index = (
            there.args[1] if there is not None and _torch.torch_name(there) == "getitem" else None
        )
    else:
        return None
    found = _argument(index, 0) if isinstance(index, fx.Node) else None
    is_part = isinstance(index, fx.Node) and _torch.torch_name(index) == "getitem"
    return found if is_part and found in rows else None


def _cover_masks(runs: list[Run], rows: Sequence[fx.Node]) -> bool:
    """Whether in each run over the experts that are hit, the turns look at the rows of each, in
    order, and at no others.
    """
    begins = [run.before for run in runs]
    wanted = [(run.mask, number) for run in runs for number in range(run.count)]
    looked = [(_source(node), _number(node)) for node in rows]
    ends = [run.before + run.count for run in runs]
    return begins == [0, *ends[:-1]] and looked == wanted


def _part(rows: fx.Node) -> fx.Node | None:
    """The part of something, in which rows were found."""
    part = _argument(rows, 0)
    while part is not None and _torch.torch_name(part) in _SAME:
        part = _argument(part, 0)
    return part if part is not None and _torch.torch_name(part) == "getitem" else None


def _source(rows: fx.Node) -> fx.Node | None:
    """What rows were found in a part of."""
    part = _part(rows)
    return None if part is None else _argument(part, 0)


def _number(rows: fx.Node) -> int | None:
    """The number of the part, in which rows were found."""
    part = _part(rows)
    number = None if part is None else part.args[1]
    if isinstance(number, (list, tuple)) and len(number) == 1:
        (number,) = number
    return number if isinstance(number, int) else None


def _sizes(rows: fx.Node) -> set[Any]:
    """How many rows were found at a node."""
    found = value_of(rows)
    parts = cast("tuple[object, ...]", found) if isinstance(found, tuple) else ()
    return {_torch.expression(p.shape[0]) for p in parts if isinstance(p, Tensor)}


# -- what may be written ----------------------------------------------------------------------

_COMPUTE = {
    "getitem", "where", "nonzero", "linear", "matmul", "mm", "bmm", "addmm", "chunk", "split",
    "unbind", "mul", "add", "sub", "div", "truediv", "neg", "silu", "gelu", "relu", "sigmoid",
    "tanh", "softplus", "softmax", "square", "pow", "exp", "view", "reshape", "flatten", "squeeze",
    "unsqueeze", "transpose", "permute", "t", "contiguous", "to", "float", "bfloat16", "half",
    "type_as", "bool", "long", "int", "clamp", "minimum", "maximum", "size", "numel", "expand",
    "eq", "ne", "gt", "ge", "lt", "le", "getattr", "sym_size", "multiply", "swapaxes", "narrow",
    "_assert_scalar",
}  # fmt: skip
"""What the experts of a loop are known to be made of; none of it writes, unless it is asked to.

What torch itself asserts of sizes is proved elsewhere (`data_sizes.unproven`).
"""

_VIEWS = {
    "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "flatten", "getitem", "t",
    "expand", "detach", "to", "contiguous", "narrow", "select", "chunk", "split", "unbind", "alias",
    "swapaxes", "swapdims", "movedim", "diagonal", "as_strided", "view_as", "expand_as", "unfold",
    "getattr", "type_as", "long", "bool", "int", "float", "requires_grad_", "numpy", "T", "mT",
}  # fmt: skip
"""What may give a tensor of the same memory."""


def _only_computes(node: fx.Node) -> bool:
    if node.op in ("placeholder", "get_attr", "output") or _torch.is_grad_mode(node):
        return True
    return _torch.torch_name(node) in _COMPUTE and not _torch.may_write(node)


def _is_written(mask: fx.Node, nodes: list[fx.Node]) -> bool:
    """Whether anything may write to a mask, or to what tells from it which experts are hit."""
    hot = _argument(mask, 0)
    shared = {mask} if hot is None else {mask, hot}
    for node in nodes:
        inputs = set(node.all_input_nodes)
        if inputs & shared and (_torch.torch_name(node) in _VIEWS or _tells(node)):
            shared.add(node)
        elif _torch.may_write(node) and _written_by(node) & shared:
            return True
    return False


def _tells(node: fx.Node) -> bool:
    """Whether a node is on the way from a mask to the experts that are hit."""
    return _torch.torch_name(node) in (
        "sum",
        "gt",
        "greater",
        "ne",
        "not_equal",
        "nonzero",
        "argwhere",
    )


def _written_by(node: fx.Node) -> set[fx.Node]:
    """What a node that may write may write to."""
    name, first = _torch.torch_name(node), _argument(node, 0)
    known = name in ("setitem", "index_add_") or (node.op == "call_method" and name.endswith("_"))
    return {first} if known and first is not None else set(node.all_input_nodes)


# -- nodes ------------------------------------------------------------------------------------


def _argument(node: fx.Node, number: int) -> fx.Node | None:
    found = node.args[number] if len(node.args) > number else None
    return found if isinstance(found, fx.Node) else None


def _shape(node: fx.Node) -> tuple[Any, ...]:
    value = value_of(node)
    return tuple(value.shape) if isinstance(value, Tensor) else ()
