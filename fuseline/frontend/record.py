"""What one torch call does, as a list of ATen calls.

A Python-level call (``x.float()``, ``x[..., :4]``, ``F.softmax(x, -1)``) is run once on fake
tensors under a dispatch mode that sits above the composite ops, so that ``linear``, attention and
the like stay whole. Calls with the same target and arguments of the same types give the same list:
`Recorder` remembers it, and a model of thirty equal layers is traced as one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fuseline import _torch
from fuseline._torch import Overload

aten = torch.ops.aten

WHOLE = {
    aten.linear.default,
    aten.matmul.default,
    aten.scaled_dot_product_attention.default,
    aten.rms_norm.default,
    aten.layer_norm.default,
    aten.softmax.int,
    aten.log_softmax.int,
}
"""Composite ops that the importer names; every other one is taken apart."""


class NotSimple(Exception):
    """A call that this road of capture cannot express; the message says why."""


@dataclass(frozen=True)
class Slot:
    """The tensor argument of this number of the recorded call."""

    index: int


@dataclass(frozen=True)
class Result:
    """Output ``output`` of the ATen call of this number."""

    call: int
    output: int


@dataclass(frozen=True)
class Literal:
    """A tensor that the call brought along."""

    value: Tensor


Ref: TypeAlias = "Slot | Result | Literal"


@dataclass
class Call:
    """One ATen call: arguments with `Ref` in place of tensors, and the fake results.

    For an overload that writes an argument, ``functional`` is the one that computes the new
    contents, and ``contents`` the fake tensor that it gives.
    """

    target: Overload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Any, ...] = ()
    functional: Overload | None = None
    contents: Tensor | None = None


@dataclass
class Recording:
    """The ATen calls of one torch call, and its value with `Ref` in place of tensors."""

    calls: list[Call] = field(default_factory=list[Call])
    value: Any = None


def map_tree(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """Apply ``leaf`` to everything in nested tuples, lists, dicts and slices."""
    if isinstance(value, (tuple, list)):
        items = [map_tree(v, leaf) for v in cast("Sequence[Any]", value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, dict):
        return {k: map_tree(v, leaf) for k, v in cast("dict[Any, Any]", value).items()}
    if isinstance(value, slice):
        parts = cast("Any", value)
        return slice(*(map_tree(v, leaf) for v in (parts.start, parts.stop, parts.step)))
    return leaf(value)


class _Mode(TorchDispatchMode):
    """Writes down the ATen calls that reach it."""

    def __init__(self, arguments: Sequence[Tensor]) -> None:
        cast("Any", super()).__init__()
        self.recording = Recording()
        self._alive: list[Tensor] = list(arguments)
        self._refs: dict[int, Ref] = {id(t): Slot(i) for i, t in enumerate(arguments)}

    def ref(self, value: Any) -> Any:
        """The `Ref` of a tensor; other values as they are."""
        if not isinstance(value, Tensor):
            return value
        known = self._refs.get(id(value))
        if known is not None:
            return known
        if _torch.is_fake(value):
            raise NotSimple("a tensor from outside the graph")
        self._alive.append(value)
        return self._refs.setdefault(id(value), Literal(value))

    def __torch_dispatch__(
        self,
        func: Overload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not _torch.is_overload(func):
            raise NotSimple(f"the higher-order operator {func}")
        if func.namespace == "prim":
            return func(*args, **kwargs)
        schema = _torch.schema_of(func)
        if schema.composite and func not in WHOLE:
            with self:
                return func.decompose(*args, **kwargs)
        return self._record(func, args, kwargs, schema)

    def _record(
        self, func: Overload, args: tuple[Any, ...], kwargs: dict[str, Any], schema: _torch.Schema
    ) -> Any:
        call = Call(func, map_tree(args, self.ref), map_tree(kwargs, self.ref))
        if schema.written and func is not aten.copy_.default:
            call.functional = _torch.functional_overload(func)
            if call.functional is None or schema.written != schema.names[:1]:
                raise NotSimple(f"{func} writes {', '.join(schema.written)}")
            call.contents = call.functional(*args, **kwargs)
        before = [_shape(a) for a in args if isinstance(a, Tensor)]
        value: Any = func(*args, **kwargs)
        if [_shape(a) for a in args if isinstance(a, Tensor)] != before:
            raise NotSimple(f"{func} changes the shape of its argument")
        several = isinstance(value, (tuple, list))
        call.outputs = tuple(cast("Sequence[Any]", value)) if several else (value,)
        number = len(self.recording.calls)
        for index, output in enumerate(call.outputs):
            if isinstance(output, Tensor) and id(output) not in self._refs:
                self._refs[id(output)] = Result(number, index)
                self._alive.append(output)
            elif not isinstance(output, Tensor) and output is not None:
                raise NotSimple(f"{func} gives {type(output).__name__}")
        self.recording.calls.append(call)
        return value


def _shape(tensor: Tensor) -> tuple[tuple[Any, ...], torch.dtype]:
    return tuple(map(_torch.expression, tensor.shape)), tensor.dtype


class Recorder:
    """Records torch calls on fake tensors, each distinct one once."""

    def __init__(self, fake_mode: Any) -> None:
        self._fake_mode = fake_mode
        self._known: dict[object, Recording] = {}
        self.traced = 0
        self.reused = 0

    def record(
        self, target: Callable[..., Any] | str, args: Any, kwargs: Any, tensors: Sequence[Tensor]
    ) -> Recording:
        """The ATen calls of ``target(*args, **kwargs)``; a string names a method of the first.

        ``tensors`` are the distinct fake tensors among the arguments; `Slot` counts in that order.

        Raises:
            NotSimple: the call cannot be written as ATen calls on those tensors.

        """
        key = self._key(target, args, kwargs, tensors)
        known = self._known.get(key) if key is not None else None
        if known is not None:
            self.reused += 1
            return known
        recording = self._trace(target, args, kwargs, tensors)
        self.traced += 1
        if key is not None:
            self._known[key] = recording
        return recording

    def _trace(self, target: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor]) -> Recording:
        mode = _Mode(tensors)
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self._fake_mode is not None:
                stack.enter_context(self._fake_mode)
            stack.enter_context(_torch.below_autograd())
            stack.enter_context(mode)
            if isinstance(target, str):
                value = getattr(args[0], target)(*args[1:], **kwargs)
            else:
                value = target(*args, **kwargs)
        mode.recording.value = map_tree(value, mode.ref)
        return mode.recording

    def _key(
        self, target: object, args: Any, kwargs: Any, tensors: Sequence[Tensor]
    ) -> object | None:
        slots = {id(t): i for i, t in enumerate(tensors)}
        key = (
            target,
            _freeze(args, slots),
            _freeze(kwargs, slots),
            tuple(map(_signature, tensors)),
        )
        try:
            hash(key)
        except TypeError:
            return None
        return key


def _signature(tensor: Tensor) -> tuple[object, ...]:
    return (
        tensor.dtype,
        tuple(map(_torch.expression, tensor.shape)),
        tuple(map(_torch.expression, tensor.stride())),
        _torch.expression(cast("int", tensor.storage_offset())),
        tensor.device,
    )


def _freeze(value: Any, slots: dict[int, int]) -> object:
    """An argument as part of a key: tensors by number, and 1, 1.0 and True told apart."""
    if isinstance(value, Tensor):
        return Slot, slots[id(value)]
    if isinstance(value, (tuple, list)):
        items = cast("Sequence[Any]", value)
        return isinstance(value, list), tuple(_freeze(v, slots) for v in items)
    if isinstance(value, dict):
        return tuple((k, _freeze(v, slots)) for k, v in cast("dict[Any, Any]", value).items())
    if isinstance(value, slice):
        parts = cast("Any", value)
        return slice, tuple(_freeze(v, slots) for v in (parts.start, parts.stop, parts.step))
    if isinstance(value, float):
        return float, value.hex()
    return str(cast("object", type(value))), _torch.scalar_expression(value)
