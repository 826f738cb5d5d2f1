"""Shape arithmetic at import: operators on small integer tensors, computed on dims.

Each function takes the node and the elements of its inputs (arrays of objects: integers, or
expressions over the symbols of sizes) and gives those of its result. It raises TypeError or
`Unsupported` where the answer is not one expression (a comparison that only a run decides); the
node then becomes ops.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import sympy

from fuseline.frontend.builder import axis_of
from fuseline.frontend.onnx.data import dtype_of
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
    return cast("Any", found if found is None or found.size <= SMALL else None)


def result_dtype(n: Node) -> DType:
    """The element type of what `evaluate` gives."""
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
    return _each_of(lambda n: function)


def _each_of(choose: Callable[[Node], Callable[..., Any]]) -> Rule:
    """A rule as `_each`, by the function that is chosen for a node."""

    def rule(n: Node, *arrays: Any) -> Any:
        function = choose(n)
        wide: list[Any] = list(np.broadcast_arrays(*arrays)) if len(arrays) > 1 else list(arrays)
        values = [function(*each) for each in zip(*(a.flat for a in wide), strict=True)]
        made: Any = np.empty(len(values), dtype=object)
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


def _division(n: Node) -> Callable[[Any, Any], Any]:
    return _whole_quotient if is_whole(n.given(0)) else _quotient


def _quotient(a: Any, b: Any) -> Any:
    if _is_number(a) and _is_number(b):
        if b == 0:
            raise Unsupported("a division by 0")
        return a / b
    return _sympy.sympify(a) / _sympy.sympify(b)


def _whole_quotient(a: Any, b: Any) -> Any:
    """Rounded towards 0."""
    if _is_number(a) and _is_number(b):
        if b == 0:
            raise Unsupported("a division by 0")
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    exact = _sympy.expand(sympy.sympify(a) / sympy.sympify(b))
    if exact.is_polynomial() and all(c.is_Integer for c in exact.as_coefficients_dict().values()):
        return exact
    if not (_nonnegative(a) and _nonnegative(b)):
        raise Unsupported("a division that rounds towards 0")
    return floor_div(a, b)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _nonnegative(value: Any) -> bool:
    return value >= 0 if _is_number(value) else bool(value.is_nonnegative)


def _modulo(n: Node) -> Callable[[Any, Any], Any]:
    fmod = bool(n.attr("fmod", 0))

    def remainder(a: Any, b: Any) -> Any:
        if fmod and not (_nonnegative(a) and _nonnegative(b)):
            raise Unsupported("a remainder with the sign of a size")
        return a % b if isinstance(a, int) and isinstance(b, int) else _sympy.Mod(a, b)

    return remainder


def _floor(a: Any) -> Any:
    return _sympy.floor(a)


def _ceil(a: Any) -> Any:
    return -_sympy.floor(-a)


def _fold(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def fold(*values: Any) -> Any:
        return functools.reduce(function, values)

    return fold


def _most(a: Any, b: Any) -> Any:
    return max(a, b) if _is_number(a) and _is_number(b) else _sympy.Max(a, b)


def _least(a: Any, b: Any) -> Any:
    return min(a, b) if _is_number(a) and _is_number(b) else _sympy.Min(a, b)


def _identity(a: Any) -> Any:
    return a


RULES.update(
    {
        "Add": _each(operator.add),
        "Sub": _each(operator.sub),
        "Mul": _each(operator.mul),
        "Neg": _each(operator.neg),
        "Div": _each_of(_division),
        "Mod": _each_of(_modulo),
        "Floor": _each(_floor),
        "Ceil": _each(_ceil),
        "Max": _each(_fold(_most)),
        "Min": _each(_fold(_least)),
        "Sum": _each(_fold(operator.add)),
        "Identity": _each(_identity),
    }
)


def _decided(relation: Callable[..., Any]) -> Callable[..., bool]:
    """A relation as a bool; TypeError where sizes decide it."""

    def decide(*values: Any) -> bool:
        return bool(relation(*values))

    return decide


def _equal(a: Any, b: Any) -> bool:
    if _is_number(a) and _is_number(b):
        return bool(a == b)
    difference: Any = _sympy.expand(a - b)
    if difference.is_zero is None and not (difference.is_positive or difference.is_negative):
        raise TypeError("sizes decide it")
    return bool(difference.is_zero)


def _both(a: Any, b: Any) -> bool:
    return bool(a) and bool(b)


def _either(a: Any, b: Any) -> bool:
    return bool(a) or bool(b)


def _where(condition: Any, a: Any, b: Any) -> Any:
    return a if bool(condition) else b


RULES.update(
    {
        "Equal": _each(_equal),
        "Less": _each(_decided(operator.lt)),
        "LessOrEqual": _each(_decided(operator.le)),
        "Greater": _each(_decided(operator.gt)),
        "GreaterOrEqual": _each(_decided(operator.ge)),
        "And": _each(_both),
        "Or": _each(_either),
        "Not": _each(operator.not_),
        "Where": _each(_where),
    }
)


@_rule("Cast", "CastLike")
def _cast(n: Node, a: Any, *_: Any) -> Any:
    to = result_dtype(n)

    def convert(value: Any) -> Any:
        if to is DType.BOOL:
            return bool(value != 0) if _is_number(value) else not _equal(value, 0)
        if _is_number(value):
            return float(value) if to.is_float else int(value)
        if to.is_float or value.is_integer:
            return value
        if value.is_nonnegative:
            return _sympy.floor(value)
        raise Unsupported("a size rounded towards 0")

    return _each(convert)(n, a)


# -- places ---------------------------------------------------------------------------------


@_rule("Gather")
def _gather(n: Node, a: Any, index: Any) -> Any:
    places = np.array([int(i) for i in index.flat], dtype=np.int64).reshape(index.shape)
    found: Any = np.take(a, places, axis=n.attr("axis", 0))
    return found if hasattr(found, "flat") else objects(found, ())


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


def _product(values: Sequence[Any]) -> Any:
    return functools.reduce(operator.mul, values, 1)


def _total(values: Sequence[Any]) -> Any:
    return functools.reduce(operator.add, values, 0)


def _largest(values: Sequence[Any]) -> Any:
    return functools.reduce(_most, values)


def _smallest(values: Sequence[Any]) -> Any:
    return functools.reduce(_least, values)


RULES.update(
    {
        "ReduceProd": _reduced(_product),
        "ReduceSum": _reduced(_total),
        "ReduceMax": _reduced(_largest),
        "ReduceMin": _reduced(_smallest),
    }
)

__all__ = ["RULES", "evaluate", "result_dtype"]
