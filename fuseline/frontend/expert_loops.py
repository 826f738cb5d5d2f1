"""Whether a loop in a user's source runs over experts: read from what it does, not from names."""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterator
from functools import lru_cache
from typing import TypeAlias

from fuseline.syntax import parse_module

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Loop: TypeAlias = ast.For | ast.While

_PRODUCTS = {"linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "mv", "dot"}

_PICKS_ROWS = {
    "where", "nonzero", "argwhere", "index_select", "index_add", "index_add_", "index_copy",
    "index_copy_", "index_put", "index_put_", "masked_select", "scatter_add", "scatter_add_",
}  # fmt: skip


def function_around(file: str, line: int) -> Function | None:
    """The innermost function that a line stands in."""
    return function_in("".join(linecache.getlines(file)), line)


@lru_cache(maxsize=256)
def function_in(source: str, line: int) -> Function | None:
    """The innermost function of a module's source that a line stands in."""
    try:
        tree = parse_module(source)
    except SyntaxError:
        return None
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, Function) and node.lineno <= line <= (node.end_lineno or 0)
    ]
    return max(around, key=lambda node: node.lineno, default=None)


def names_in(node: ast.AST | None) -> set[str]:
    """The attributes and names that are read anywhere in a piece of source."""
    every = () if node is None else tuple(ast.walk(node))
    attributes = {n.attr for n in every if isinstance(n, ast.Attribute)}
    return attributes | {n.id for n in every if isinstance(n, ast.Name)}


def counts_tokens(file: str, line: int) -> bool:
    """Whether a line reads into Python how many tokens each expert has, to split them by it.

    That is one that makes a list, in a function that chooses the best and sorts by the choice.
    """
    function = function_around(file, line)
    if function is None or not {"topk", "sort"} <= names_in(function) | _unprefixed(function):
        return False
    here = (n for n in ast.walk(function) if getattr(n, "lineno", 0) == line)
    return any(isinstance(n, ast.Attribute) and n.attr == "tolist" for n in here)


def _unprefixed(function: Function) -> set[str]:
    """``sort`` for ``argsort``."""
    return {name.removeprefix("arg") for name in names_in(function)}


def runs_over_experts(file: str, line: int, *, inside: bool) -> bool:
    """Whether a line stands in or (unless it must be ``inside``) before a loop over experts.

    That is one whose turns each take a module or a matrix of several, call it or multiply by it,
    and pick the rows that it is for.
    """
    function = function_around(file, line)
    loops = (n for n in ast.walk(function) if isinstance(n, Loop)) if function else ()
    return any(
        _is_over_experts(loop)
        for loop in loops
        if line <= (loop.end_lineno or 0) and (loop.lineno <= line or not inside)
    )


def _is_over_experts(loop: Loop) -> bool:
    turns = _Turns(loop)
    return turns.pick_rows() and turns.use_what_they_take()


class _Turns:
    """What the turns of a loop do.

    ``numbers`` are the names that tell one turn from another, ``taken`` those of what it takes out
    of several for itself.
    """

    def __init__(self, loop: Loop) -> None:
        self.nodes = [n for statement in loop.body for n in ast.walk(statement)]
        self.numbers, self.iterated = set[str](), set[str]()
        if isinstance(loop, ast.For):
            self.numbers = names_in(loop.target)
            if not _calls(loop.iter, {"range"}):
                self.iterated = set(self.numbers)
        else:  # a counter that the loop moves on
            moved = (n for n in self.nodes if isinstance(n, ast.AugAssign))
            self.numbers = {n.target.id for n in moved if isinstance(n.target, ast.Name)}
        self.taken = set[str]()
        for target, value in self._assignments():
            if any(self._takes(n) for n in ast.walk(value)):
                self.taken |= target
            elif isinstance(value, ast.Subscript) and names_in(value.slice) & self.numbers:
                self.iterated |= target  # of several that are not the module's own
            elif _is_number_of(value, self.numbers):
                self.numbers |= target

    def _assignments(self) -> Iterator[tuple[set[str], ast.expr]]:
        for node in self.nodes:
            if isinstance(node, ast.Assign):
                yield {t.id for t in node.targets if isinstance(t, ast.Name)}, node.value

    def _takes(self, node: ast.AST) -> bool:
        """``self.something[e]``, be it through a view, or ``self[e]``."""
        if not isinstance(node, ast.Subscript):
            return False
        own = _reads_self(node.value) or _is_self(node.value)
        return own and bool(names_in(node.slice) & self.numbers)

    def _holds_taken(self, node: ast.AST) -> bool:
        return any(
            self._takes(n) or (isinstance(n, ast.Name) and n.id in self.taken)
            for n in ast.walk(node)
        )

    def use_what_they_take(self) -> bool:
        """Whether a module of several is called, or a matrix of several multiplied."""
        return any(self._uses(node) for node in self.nodes)

    def _uses(self, node: ast.AST) -> bool:
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in self.iterated:
                return True
            case ast.Call(func=ast.Subscript(slice=at)) if names_in(at) & self.numbers:
                return True
            case ast.Call(func=func, args=args):
                if _name(func) in _PRODUCTS:
                    return any(self._holds_taken(a) or self._one_of_several(a) for a in args)
                called = isinstance(func, ast.Name | ast.Subscript) and self._holds_taken(func)
                return called or (_reads_self(func) and any(map(self._holds_taken, args)))
            case ast.BinOp(left=left, op=ast.MatMult(), right=right):
                return any(self._holds_taken(n) or self._one_of_several(n) for n in (left, right))
            case _:
                return False

    def _one_of_several(self, node: ast.AST) -> bool:
        """``w[e]``, the factor of a product, wherever w comes from."""
        return any(
            isinstance(n, ast.Subscript)
            and isinstance(n.slice, ast.Name)
            and n.slice.id in self.numbers
            for n in ast.walk(node)
        )

    def pick_rows(self) -> bool:
        """Whether rows are told by what a tensor holds."""
        return any(
            isinstance(node, ast.Call) and _name(node.func) in _PICKS_ROWS for node in self.nodes
        ) or any(self._masks(node) for node in self.nodes)

    def _masks(self, node: ast.AST) -> bool:
        """``rows = choice == e``, or that as an index."""
        value = node.value if isinstance(node, ast.Assign) else None
        value = node.slice if isinstance(node, ast.Subscript) else value
        compared = () if value is None else ast.walk(value)
        return any(
            isinstance(n, ast.Compare)
            and any(isinstance(sign, ast.Eq) for sign in n.ops)
            and names_in(n) & self.numbers
            for n in compared
        )


def _is_number_of(value: ast.expr, numbers: set[str]) -> bool:
    """``e[0]``, ``e.item()`` or ``int(e)``: the same number in another form."""
    match value:
        case ast.Name(id=name):
            return name in numbers
        case (
            ast.Subscript(value=inner, slice=ast.Constant())
            | ast.Call(func=ast.Attribute(value=inner, attr="item"))
            | ast.Call(func=ast.Name(id="int"), args=[inner])
        ):
            return _is_number_of(inner, numbers)
        case _:
            return False


def _reads_self(node: ast.AST) -> bool:
    """Whether an attribute of the module is read."""
    return any(isinstance(n, ast.Attribute) and _is_self(n.value) for n in ast.walk(node))


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _calls(node: ast.AST, names: set[str]) -> bool:
    return any(isinstance(n, ast.Call) and _name(n.func) in names for n in ast.walk(node))


def _name(func: ast.expr) -> str:
    match func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
        case _:
            return ""
