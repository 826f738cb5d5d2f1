"""Integer expressions over the names of sizes: which texts are such, and small enough to evaluate.

They are Python's arithmetic with ``Max`` and ``Min``, and come from files, too. So nothing is
evaluated before it is known what it can grow to: a tower of powers is a number without end, and a
power of a sum is a polynomial with too many terms.
"""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Container
from functools import lru_cache

from fuseline.syntax import parse_expression

MOST_CHARACTERS = 10_000
"""Of an expression: what is longer is none of ours, and takes the parser too deep."""

MOST_POWER = 8
"""The greatest exponent."""

MOST_DEPTH = 200
"""Operations within one another."""

MOST_BITS = 4096
"""Of a value, where each name stands for 63."""

MOST_TERMS = 2000
"""Of a polynomial, multiplied out."""

_FUNCTIONS = ("Max", "Min")
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.Pow)
_TEXT = re.compile(r"[A-Za-z0-9_+\-*/%(), ]*")
_GLUED = re.compile(r"(?<![A-Za-z0-9_])[0-9]+[A-Za-z_]")
"""A number that runs into a word; Python warns of some of them."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def is_size_name(name: str) -> bool:
    """Whether a size may have this name: it is one for Python, and means nothing else."""
    known = keyword.iskeyword(name) or name in _FUNCTIONS or name.startswith("__")
    return _NAME.fullmatch(name) is not None and not known


def is_integer_expression(text: str, names: Container[str] | None = None) -> bool:
    """Whether a text is integer arithmetic over these names (any, by default), and nothing else."""
    used = _names_in(text)
    return used is not None and (names is None or all(name in names for name in used))


@lru_cache(maxsize=4096)
def _names_in(text: str) -> frozenset[str] | None:
    """The names of sizes in an expression; None where it is none, or can grow too large."""
    if len(text) > MOST_CHARACTERS or not _TEXT.fullmatch(text) or _GLUED.search(text):
        return None
    try:
        nodes = list(ast.walk(parse_expression(text)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return _names_of(nodes)


def _names_of(nodes: list[ast.AST]) -> frozenset[str] | None:
    """The names, if each node is plain, and what it can grow to is not too large.

    Nodes come before what is in them, so that the other way round each finds its parts known; and
    no recursion follows how deep they lie.
    """
    names: set[str] = set()
    sizes: dict[int, tuple[int, int, int]] = {}
    for node in reversed(nodes):
        match node:
            case ast.Load() | ast.operator() | ast.unaryop():
                continue
            case ast.Name(name) if name in _FUNCTIONS:
                continue  # its call has looked at it; alone it has no size, and nothing finds one
            case ast.Name(name):
                if not is_size_name(name):
                    return None
                names.add(name)
                sizes[id(node)] = (63, 1, 0)
            case ast.Constant(value):
                if type(value) is not int:
                    return None
                sizes[id(node)] = (value.bit_length(), 1, 0)
            case _:
                found = _size(node, sizes)
                if found is None or any(map(_above, found, (MOST_BITS, MOST_TERMS, MOST_DEPTH))):
                    return None
                sizes[id(node)] = found
    return frozenset(names) if id(nodes[0]) in sizes else None


def _above(found: int, most: int) -> bool:
    return found > most


def _size(node: ast.AST, sizes: dict[int, tuple[int, int, int]]) -> tuple[int, int, int] | None:
    """Bits, terms and depth of an operation; None where it is none of ours."""
    match node:
        case ast.UnaryOp(ast.USub(), operand):
            inner = [sizes.get(id(operand))]
        case ast.BinOp(left, operator, right) if isinstance(operator, _OPERATORS):
            inner = [sizes.get(id(left)), sizes.get(id(right))]
        case ast.Call(ast.Name(name), arguments, []) if name in _FUNCTIONS and arguments:
            inner = [sizes.get(id(argument)) for argument in arguments]
        case _:
            return None
    known = [each for each in inner if each is not None]
    if len(known) != len(inner):
        return None
    bits, terms = [each[0] for each in known], [each[1] for each in known]
    depth = 1 + max(each[2] for each in known)
    match node:
        case ast.BinOp(_, ast.Add() | ast.Sub(), _):
            return max(bits) + 1, sum(terms), depth
        case ast.BinOp(_, ast.Mult(), _):
            return sum(bits), terms[0] * terms[1], depth
        case ast.BinOp(_, ast.Pow(), ast.Constant(exponent)):
            if type(exponent) is not int or exponent > MOST_POWER:
                return None
            return bits[0] * exponent, terms[0] ** exponent, depth
        case ast.BinOp(_, ast.Pow(), _):
            return None
        case _:
            return max(bits), max(terms) if isinstance(node, ast.UnaryOp) else 1, depth


__all__ = ["MOST_CHARACTERS", "MOST_POWER", "is_integer_expression", "is_size_name"]
