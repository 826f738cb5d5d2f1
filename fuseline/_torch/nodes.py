"""What the nodes of a traced graph say."""

from __future__ import annotations

from typing import Any

from torch import fx


def name_of_target(node: fx.Node) -> str:
    """The name of what a node calls, whichever way it calls it."""
    target: Any = node.target
    if isinstance(target, str):
        return target
    packet = getattr(target, "overloadpacket", target)
    return str(getattr(packet, "__name__", packet))


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
