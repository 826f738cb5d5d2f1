"""Loops over experts whose turns do nothing where no row is theirs: read from the source.

Such a loop can be traced as one over all experts, and as if every turn had rows, whatever the data:

    for e in hit:                        # the experts that have tokens
        rows = torch.where(mask[e])
        if rows.numel() == 0:
            continue
        y.index_add_(0, rows, self.experts[e](x[rows]))

Tensors are not looked at here: that the rows of a turn are those of its expert is for the graph to
show. What no graph shows is the rest, such as a Python number that turns count up.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from functools import lru_cache

from fuseline.frontend.expert_loops import Function, function_around, names_in

_ADDS_ROWS = {"index_add", "index_put", "index_copy", "scatter_add"}
_MODES = {"no_grad", "inference_mode"}
_OF_OTHER_TIMES = (ast.Lambda, ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)


def has_idle_turns(file: str, line: int) -> bool:
    """Whether the loop that a line is in, or makes the numbers for, may run all of its turns."""
    function = function_around(file, line)
    return function is not None and _has_idle_turns(function, line)


@lru_cache(maxsize=256)
def _has_idle_turns(function: Function, line: int) -> bool:
    loops = [n for n in ast.walk(function) if isinstance(n, ast.For)]
    around = [n for n in loops if n.lineno <= line <= (n.end_lineno or 0)]
    if not around:
        made = _names_made(function, line)
        around = [n for n in loops if names_in(n.iter) & made and _reads(function, made) == 1]
    loop = max(around, key=lambda n: n.lineno, default=None)
    if loop is None or loop.orelse:
        return False
    nested = any(n is not loop and loop in ast.walk(n) for n in _loops(function))
    return _Turn(loop).is_idle(function, nested=nested)


def _loops(function: Function) -> Iterator[ast.For | ast.While]:
    return (n for n in ast.walk(function) if isinstance(n, ast.For | ast.While))


def _names_made(function: Function, line: int) -> set[str]:
    """The names that the statement on a line assigns."""
    statements = (n for n in ast.walk(function) if isinstance(n, ast.Assign))
    here = [n for n in statements if n.lineno <= line <= (n.end_lineno or 0)]
    return {t.id for n in here for t in n.targets if isinstance(t, ast.Name)}


def _reads(function: Function, names: set[str]) -> int:
    return sum(_is_read(n) and n.id in names for n in ast.walk(function) if isinstance(n, ast.Name))


def _is_read(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Load)


class _Turn:
    """One turn of a loop: ``own`` are the names that it makes anew, ``effects`` the statements that
    add its rows to something, ``numbers`` the names of Python numbers that tell it from others.
    """

    def __init__(self, loop: ast.For) -> None:
        self.loop = loop
        inside = [n for statement in loop.body for n in ast.walk(statement)]
        self.effects = [n for n in inside if isinstance(n, ast.stmt) and _adds_rows(n)]
        stored = {n.id for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        self.own = stored - {name for effect in self.effects for name in _names_given(effect)}
        self.numbers = names_in(loop.target)
        for node in inside:
            if isinstance(node, ast.Assign) and names_in(node.value) <= self.numbers:
                self.numbers |= _names_given(node)

    def is_idle(self, function: Function, *, nested: bool) -> bool:
        """Whether a turn without rows does nothing that its loop, or the function, sees."""
        if len(self.effects) != 1 or not self._picks_rows(self.effects[0]):
            return False
        inside, end = set(ast.walk(self.loop)), self.loop.end_lineno or 0
        for node in ast.walk(function):
            if not isinstance(node, ast.Name) or node in inside or not _is_read(node):
                continue
            if node.id in self.own and (nested or node.lineno > end):
                return False
        return self._run(self.loop.body, names_in(self.loop.target)) is not None

    def _picks_rows(self, effect: ast.stmt) -> bool:
        """Whether an effect is told where to add by more than numbers."""
        return bool((names_in(effect) & self.own) - self.numbers)

    def _run(self, body: Sequence[ast.stmt], known: set[str]) -> set[str] | None:
        """The names that are known behind some statements; None where one may not be there."""
        for statement in body:
            after = self._step(statement, known)
            if after is None:
                return None
            known = after
        return known

    def _step(self, statement: ast.stmt, known: set[str]) -> set[str] | None:
        match statement:
            case ast.Continue() | ast.Pass():
                return known
            case ast.If(test=test, body=body, orelse=other):
                first, second = self._run(body, known), self._run(other, known)
                if first is None or second is None or not self._may_read(test, known):
                    return None
                return second if _leaves(body) else first if _leaves(other) else first & second
            case ast.With(items=items, body=body) if all(map(_is_mode, items)):
                return self._run(body, known)
            case _ if statement in self.effects:
                return known if self._may_read(statement, known) else None
            case ast.Assign(value=value) if made := _names_given(statement):
                return known | made if self._may_read(value, known) else None
            case _:
                return None

    def _may_read(self, node: ast.AST, known: set[str]) -> bool:
        """Whether nothing is read that an earlier turn made, or done at another time."""
        nodes = list(ast.walk(node))
        if any(isinstance(n, _OF_OTHER_TIMES) for n in nodes):
            return False
        read = {n.id for n in nodes if isinstance(n, ast.Name) and _is_read(n)}
        bound = (names_in(n.target) for n in nodes if isinstance(n, ast.comprehension))
        return not (read & self.own).difference(known, *bound)


def _leaves(body: Sequence[ast.stmt]) -> bool:
    return bool(body) and isinstance(body[-1], ast.Continue)


def _is_mode(item: ast.withitem) -> bool:
    """``torch.no_grad()``."""
    match item:
        case ast.withitem(ast.Call(func=ast.Attribute(attr=name)), None):
            return name in _MODES
        case _:
            return False


def _names_given(statement: ast.stmt) -> set[str]:
    """The names that a statement assigns, where it assigns nothing else."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)]):
            return {name}
        case ast.Assign(targets=[ast.Tuple(elts=parts)]):
            names = {p.id for p in parts if isinstance(p, ast.Name)}
            return names if len(names) == len(parts) else set()
        case _:
            return set()


def _adds_rows(statement: ast.stmt) -> bool:
    """``y.index_add_(...)``, ``y = y.index_add(...)``, ``y[rows] += ...`` or ``y[rows] = ...``."""
    match statement:
        case ast.Expr(ast.Call(func=ast.Attribute(attr=name))):
            return name.endswith("_") and name.removesuffix("_") in _ADDS_ROWS
        case ast.Assign(
            targets=[ast.Name(id=made)],
            value=ast.Call(func=ast.Attribute(value=ast.Name(id=base), attr=name)),
        ):
            return made == base and name in _ADDS_ROWS
        case ast.AugAssign(target=ast.Subscript(), op=ast.Add()):
            return True
        case ast.Assign(targets=[ast.Subscript()]):
            return True
        case _:
            return False
