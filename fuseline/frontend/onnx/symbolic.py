"""Shape arithmetic at import: operators on small integer tensors, computed on dims.

Each function takes the node and the elements of its inputs (arrays of objects: integers, or
expressions over the symbols of sizes) and gives those of its result. It raises TypeError or
`Unsupported` where the answer is not one expression (a comparison that only a run decides); the
node then becomes ops.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import sympy

from fuseline.frontend.builder import axis_of
from fuseline.frontend.onnx.node import SMALL, Given, Node, objects
from fuseline.frontend.onnx.registry import Unsupported
from fuseline.ir.types import DType, floor_div

_sympy = cast("Any", sympy)

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def evaluate(n: Node) -> Any:
    """The elements of the first result of a node, or None where no rule gives them."""
    rule = RULES.get(n.op) if not n.domain else None
    if rule is None or len(n.wanted) != 1:
        return None
    arrays: list[Any] = []
    if n.op not in ("Shape", "Size"):
        for given in n.inputs:
            if given is not None and given.elements is None:
                return None
            arrays.append(None if given is None else given.elements)
    try:
        found = rule(n, *arrays)
    except (TypeError, Unsupported):
        return None
    return found if found is None or found.size <= SMALL else None


def result_dtype(n: Node) -> DType:
    """The element type of what `evaluate` gives."""
    from fuseline.frontend.onnx.data import dtype_of

    match n.op:
        case "Shape" | "Size":
            return DType.I64
        case "Cast":
            return dtype_of(n.attr("to"))
        case "CastLike":
            return n.given(1).type.dtype
        case "ConstantOfShape":
            value = n.attr("value")
            return DType.F32 if value is None else DType.from_torch(value.dtype)
        case "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" | "Not":
            return DType.BOOL
        case "Where":
            return n.given(1).type.dtype
        case _:
            return n.given(0).type.dtype


def _each(function: Callable[..., Any]) -> Rule:
    """A rule that works element by element, on broadcast arrays."""

    def rule(n: Node, *arrays: Any) -> Any:
        wide = np.broadcast_arrays(*arrays) if len(arrays) > 1 else list(arrays)
        values = [function(n, *each) for each in zip(*(a.flat for a in wide), strict=True)]
        made = np.empty(len(values), dtype=object)
        made[:] = values
        return made.reshape(wide[0].shape)

    return rule


def is_whole(given: Given) -> bool:
    """Whether a value has integers."""
    return not given.type.dtype.is_float


# -- sizes ----------------------------------------------------------------------------------


@_rule("Shape")
def _shape(n: Node) -> Any:
    shape = list(n.given(0).type.shape)
    shape = shape[n.attr("start", 0) : n.attr("end", None)]
    return objects(shape, (len(shape),)) if shape else np.empty((0,), dtype=object)


@_rule("Size")
def _size(n: Node) -> Any:
    return objects(n.given(0).type.numel, ())


# -- arithmetic -----------------------------------------------------------------------------


def _quotient(n: Node, a: Any, b: Any) -> Any:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        if b == 0:
            raise Unsupported("a division by 0")
        if not is_whole(n.given(0)):
            return a / b
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    exact = sympy.sympify(a) / sympy.sympify(b)
    if not is_whole(n.given(0)):
        return exact
    exact = _sympy.expand(exact)
    if exact.is_polynomial() and all(c.is_Integer for c in exact.as_coefficients_dict().values()):
        return exact
    if not (_nonnegative(a) and _nonnegative(b)):
        raise Unsupported("a division that rounds towards 0")
    return floor_div(a, b)


def _nonnegative(value: Any) -> bool:
    return value >= 0 if isinstance(value, (int, float)) else bool(value.is_nonnegative)


def _remainder(n: Node, a: Any, b: Any) -> Any:
    if n.attr("fmod", 0) and not (_nonnegative(a) and _nonnegative(b)):
        raise Unsupported("a remainder with the sign of a size")
    return a % b if isinstance(a, int) and isinstance(b, int) else _sympy.Mod(a, b)


def _floor(n: Node, a: Any) -> Any:
    return _sympy.floor(a)


def _ceil(n: Node, a: Any) -> Any:
    return -_sympy.floor(-a)


def _fold(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda n, *values: functools.reduce(function, values)


def _most(a: Any, b: Any) -> Any:
    return max(a, b) if isinstance(a, (int, float)) and isinstance(b, (int, float)) else (
        _sympy.Max(a, b)
    )


def _least(a: Any, b: Any) -> Any:
    return min(a, b) if isinstance(a, (int, float)) and isinstance(b, (int, float)) else (
        _sympy.Min(a, b)
    )


RULES |= {
    "Add": _each(lambda n, a, b: a + b),
    "Sub": _each(lambda n, a, b: a - b),
    "Mul": _each(lambda n, a, b: a * b),
    "Neg": _each(lambda n, a: -a),
    "Div": _each(_quotient),
    "Mod": _each(_remainder),
    "Floor": _each(_floor),
    "Ceil": _each(_ceil),
    "Max": _each(_fold(_most)),
    "Min": _each(_fold(_least)),
    "Sum": _each(_fold(lambda a, b: a + b)),
    "Identity": lambda n, a: a,
}


def _decided(relation: Any) -> bool:
    """A relation as a bool; TypeError where sizes decide it."""
    return bool(relation)


def _equal(n: Node, a: Any, b: Any) -> bool:
    if isinstance(a, sympy.Basic) or isinstance(b, sympy.Basic):
        difference: Any = _sympy.expand(a - b)
        if difference.is_zero is None and not (difference.is_positive or difference.is_negative):
            raise TypeError("sizes decide it")
        return bool(difference.is_zero)
    return a == b


RULES |= {
    "Equal": _each(_equal),
    "Less": _each(lambda n, a, b: _decided(a < b)),
    "LessOrEqual": _each(lambda n, a, b: _decided(a <= b)),
    "Greater": _each(lambda n, a, b: _decided(a > b)),
    "GreaterOrEqual": _each(lambda n, a, b: _decided(a >= b)),
    "And": _each(lambda n, a, b: bool(a) and bool(b)),
    "Or": _each(lambda n, a, b: bool(a) or bool(b)),
    "Not": _each(lambda n, a: not a),
    "Where": _each(lambda n, c, a, b: a if _decided(c) else b),
}


@_rule("Cast", "CastLike")
def _cast(n: Node, a: Any, *_: Any) -> Any:
    to = result_dtype(n)

    def convert(value: Any) -> Any:
        if to is DType.BOOL:
            return _decided(value != 0)
        if to.is_float:
            return value if isinstance(value, sympy.Basic) else float(value)
        if isinstance(value, sympy.Basic):
            whole: Any = value
            if whole.is_integer:
                return value
            if whole.is_nonnegative:
                return _sympy.floor(value)
            raise Unsupported("a size rounded towards 0")
        return int(value)

    return _each(lambda n, v: convert(v))(n, a)


# -- places ---------------------------------------------------------------------------------


@_rule("Gather")
def _gather(n: Node, a: Any, index: Any) -> Any:
    places = np.array([int(i) for i in index.flat], dtype=np.int64).reshape(index.shape)
    found = np.take(a, places, axis=n.attr("axis", 0))
    return found if isinstance(found, np.ndarray) else objects(found, ())


@_rule("Concat")
def _concat(n: Node, *arrays: Any) -> Any:
    return np.concatenate(arrays, axis=n.attr("axis"))


@_rule("Unsqueeze")
def _unsqueeze(n: Node, a: Any, axes: Any = None) -> Any:
    places = n.attr("axes") if axes is None else axes.flat
    return np.expand_dims(a, tuple(int(v) for v in places))


@_rule("Squeeze")
def _squeeze(n: Node, a: Any, axes: Any = None) -> Any:
    places = n.attr("axes") if axes is None else axes.flat
    return np.squeeze(a, None if places is None else tuple(int(v) for v in places))


@_rule("Reshape")
def _reshape(n: Node, a: Any, shape: Any) -> Any:
    sizes = [int(v) for v in shape.flat]
    return a.reshape([a.shape[i] if s == 0 else s for i, s in enumerate(sizes)])


@_rule("Slice")
def _slice(n: Node, a: Any, starts: Any, stops: Any, axes: Any = None, steps: Any = None) -> Any:
    key = [slice(None)] * a.ndim
    places = range(starts.size) if axes is None else axes.flat
    each = [1] * starts.size if steps is None else steps.flat
    for start, stop, axis, step in zip(starts.flat, stops.flat, places, each, strict=True):
        stop = None if step < 0 and stop < -(2**31) else int(stop)
        key[axis_of(int(axis), a.ndim)] = slice(int(start), stop, int(step))
    return a[tuple(key)]


@_rule("Expand")
def _expand(n: Node, a: Any, shape: Any) -> Any:
    sizes = [int(v) for v in shape.flat]
    return np.broadcast_to(a, np.broadcast_shapes(a.shape, tuple(sizes))).copy()


@_rule("ConstantOfShape")
def _constant_of_shape(n: Node, shape: Any) -> Any:
    value = n.attr("value")
    number = 0.0 if value is None else value.item()
    sizes = tuple(int(v) for v in shape.flat)
    return objects(number, sizes) if np.prod(sizes, initial=1) <= SMALL else None


@_rule("Range")
def _range(n: Node, start: Any, stop: Any, step: Any) -> Any:
    places = np.arange(int(start.item()), int(stop.item()), int(step.item())).tolist()
    return objects(places, (len(places),)) if is_whole(n.given(0)) else None


def _reduced(function: Callable[[Sequence[Any]], Any]) -> Rule:
    def rule(n: Node, a: Any, axes: Any = None) -> Any:
        if a.ndim != 1 or (axes is not None and axes.size == 0):
            return None
        value = function(list(a.flat))
        return objects(value, (1,) if n.attr("keepdims", 1) else ())

    return rule


RULES |= {
    "ReduceProd": _reduced(lambda v: functools.reduce(lambda a, b: a * b, v, 1)),
    "ReduceSum": _reduced(lambda v: functools.reduce(lambda a, b: a + b, v, 0)),
    "ReduceMax": _reduced(lambda v: functools.reduce(_most, v)),
    "ReduceMin": _reduced(lambda v: functools.reduce(_least, v)),
}

__all__ = ["RULES", "evaluate", "result_dtype"]
