"""Training mode in what was captured: a file is for inference, and its programs have one mode."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from fuseline import _torch, errors
from fuseline.frontend.places import place_of


def check_mode(name: str, model: nn.Module | None, graph: fx.Graph) -> None:
    """Refuse a model that is in training mode where its graph shows that.

    What draws random numbers in evaluation, too, is taken; of a program without its model (None),
    random operations that have no mode are. What Python has asked of ``self.training`` is in no
    graph, and not seen.

    Raises:
        ArtifactError: FL1107, for dropout, another random operation, or statistics of a batch that
            are kept, of a model with a module in training mode.

    """
    if model is not None and not any(module.training for module in model.modules()):
        return
    for node in graph.nodes:
        if node.op == "call_function" and (what := _trains(node, random=model is not None)):
            raise errors.CANNOT_EXPORT.error(
                name,
                found=f"{what} of a model in training mode ({place_of(node)})",
                hint="call model.eval() before",
            )


def _trains(node: fx.Node, *, random: bool) -> str:
    """What a call does that it would not do in evaluation; with ``random``, any that is."""
    overload: Any = node.target
    if not _torch.is_overload(overload):
        return ""
    given = _arguments(node)
    if "running_mean" in given:
        batch = given.get("training", given.get("train", False))
        return "statistics of a batch" if batch and given["running_mean"] is not None else ""
    chance = given.get("dropout_p", given.get("dropout", 0))
    if "dropout" in overload._schema.name:
        chance = given.get("p", chance)
    elif _torch.is_random(overload) and "dropout_p" not in given:
        return f"{overload}, which is random," if random else ""
    trains = given.get("train", given.get("training", True))
    return "dropout" if chance and trains is not False else ""


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments by the names of the schema, with the defaults of those that were not given."""
    overload: Any = node.target
    parameters = overload._schema.arguments
    defaults = {p.name: p.default_value for p in parameters if p.has_default_value()}
    given = dict(zip((p.name for p in parameters), node.args, strict=False))
    return {**defaults, **given, **node.kwargs}


__all__ = ["check_mode"]
