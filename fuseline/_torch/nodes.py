"""What the nodes of a traced graph say."""

from __future__ import annotations

import inspect
import operator
from typing import Any, cast

import torch
from torch import fx
from torch._ops import OpOverload, OpOverloadPacket


def name_of_target(node: fx.Node) -> str:
    """The name of what a node calls, whichever way it calls it."""
    target: Any = node.target
    if isinstance(target, str):
        return target
    packet = getattr(target, "overloadpacket", target)
    return str(getattr(packet, "__name__", packet))


_FROM: tuple[Any, ...] = (torch, torch.nn.functional, cast("Any", torch)._C._nn, operator)

_IN_PLACE = {
    "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior",
    "ixor", "ilshift", "irshift", "iconcat", "delitem", "setitem",
}  # fmt: skip

_TOLD_TO_WRITE = ("out", "inplace", "max_norm", "running_mean", "running_var")


def torch_name(node: fx.Node) -> str:
    """The name of what a node calls, where that is a method, or a function of torch's or Python's
    own; empty for anything else, whatever it is called.
    """
    target: Any = node.target
    if node.op == "call_method":
        return str(target)
    if node.op != "call_function":
        return ""
    name = name_of_target(node)
    if _overloads(target):
        return name if str(target).startswith("aten.") else ""
    known = target is getattr or any(getattr(m, name, None) is target for m in _FROM)
    return name if known or is_grad_mode(node) else ""


def may_write(node: fx.Node) -> bool:
    """Whether a call may write to what it is given, or do what a graph does not show."""
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    name = torch_name(node)
    if not name or name == "setitem" or name.startswith("__") or name.endswith("_"):
        return not is_grad_mode(node)
    if node.op == "call_function" and getattr(operator, name, None) is node.target:
        return name in _IN_PLACE
    overloads = _overloads(node.target)
    if overloads:
        return any(bool(o._schema.is_mutable) for o in overloads)
    given = _given(node)
    return any(given.get(key) not in (None, False) for key in _TOLD_TO_WRITE)


def _overloads(target: Any) -> list[Any]:
    if isinstance(target, OpOverloadPacket):
        packet = cast("Any", target)
        return [getattr(packet, name) for name in packet.overloads()]
    return [target] if isinstance(target, OpOverload) else []


def _given(node: fx.Node) -> dict[str, Any]:
    """What a function is given, by the names of its arguments where it has a signature."""
    if not inspect.isfunction(node.target):
        return dict(node.kwargs)
    try:
        return dict(inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments)
    except (TypeError, ValueError):
        return dict.fromkeys(_TOLD_TO_WRITE, True)


def is_functorch(target: object) -> bool:
    """Whether a traced call belongs to a transform of ``torch.func``.

    Such calls enter and leave the transform, and between them tensors have dims that do not show.
    """
    modules = ("torch._functorch", "torch._C._functorch")
    return str(getattr(target, "__module__", "")).startswith(modules)


def is_grad_mode(node: fx.Node) -> bool:
    """Whether a traced call switches gradients or inference mode on or off."""
    name = getattr(node.target, "__name__", "")
    return name in ("_set_grad_enabled", "_enter_inference_mode", "_exit_inference_mode")


def turns_gradients_off(node: fx.Node) -> bool:
    """Whether the switch of `is_grad_mode` is to no gradients."""
    enters = getattr(node.target, "__name__", "") == "_enter_inference_mode"
    return bool(node.args) and node.args[0] is enters


def source_name(placeholder: fx.Node) -> str:
    """Where Dynamo found an input, as Python text (``L['self']._modules['norm'].weight``)."""
    grapharg = placeholder.meta.get("grapharg")
    source = getattr(grapharg, "source", None) or getattr(placeholder, "_dynamo_source", None)
    if source is None:
        return placeholder.name
    name = source.name  # a method up to torch 2.11, a property later
    return str(name() if callable(name) else name)
