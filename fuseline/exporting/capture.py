"""Programs captured whole, and what those of one file have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fuseline import _torch, errors
from fuseline.exporting import describe
from fuseline.exporting.modes import check_mode
from fuseline.frontend import export as frontend
from fuseline.frontend.imported import Whole
from fuseline.runtime.graphs.recorder import first_line

Model: TypeAlias = "nn.Module | torch.export.ExportedProgram | Whole"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A program of an artifact before it is captured.

    Attributes:
        model: a module; or what knows its inputs, so that nothing else is given: what
            ``torch.export`` has captured, or an ONNX model that was imported.
        args: example positional arguments.
        kwargs: example keyword arguments.
        dynamic_shapes: which dims may vary, as ``torch.export.export`` takes it.
        otherwise: what stands in where this cannot be captured for all sizes of its dims.
    """

    model: Model
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    dynamic_shapes: Any = None
    otherwise: Part | None = None


@dataclass(frozen=True)
class Stage:
    """How far an export is.

    Attributes:
        what: such as ``capture main`` or ``compile main for sm_90``.
        done: of ``total`` kernels; 0 of 0 where nothing is counted.
        total: see ``done``.
        name: the latest kernel.
    """

    what: str
    done: int = 0
    total: int = 0
    name: str = ""


OnStage = Callable[[Stage], None]


def untold(stage: Stage) -> None:
    """Nobody watches."""


def common_tensors(exported: Mapping[str, describe.Ahead]) -> dict[str, Tensor]:
    """All tensors by name.

    Raises:
        ArtifactError: FL1107, if two programs have ones of one name that hold something else.

    """
    found: dict[str, Tensor] = {}
    for program, each in exported.items():
        for name, tensor in describe.tensors_of(program, each.captured).items():
            other = found.setdefault(name, tensor)
            if not _are_one(other, tensor):
                raise errors.CANNOT_EXPORT.error(
                    program,
                    found=f"{name}, which is another tensor in an earlier program",
                    hint="give all programs of a file one module, or parameters of other names",
                )
    _check_states(exported)
    return found


def _check_states(exported: Mapping[str, describe.Ahead]) -> None:
    """What a program writes has one name in all of them, and a name is one state.

    Raises:
        ArtifactError: FL1107, if another program has it, or a part of it, by another name, or
            another tensor by this name: one that holds the same today need not do so for long.

    """
    held = [
        (program, item, _torch.storage_of(item.actual))
        for program, each in exported.items()
        for item in each.captured.inputs
        if item.actual is not None
    ]
    written = [each for each in held if each[1].written]
    by_memory = {memory: (program, item.name) for program, item, memory in written}
    by_name = {item.name: (program, memory) for program, item, memory in written}
    for program, item, memory in held:
        writer, name = by_memory.get(memory, ("", item.name))
        owner, own = by_name.get(item.name, ("", memory))
        if name != item.name:
            found = f"{item.name}, which is {name} in {writer}, where it is written"
        elif own != memory:
            found = f"{item.name}, which is another tensor in {owner}, where it is written"
        else:
            continue
        raise errors.CANNOT_EXPORT.error(
            program,
            found=found,
            expected="one name for one buffer",
            hint="give all programs of a file one module",
        )


def _are_one(one: Tensor, other: Tensor) -> bool:
    """Whether one stored tensor can stand for both: they are of one form, and hold the same."""
    forms = {(t.shape, t.stride(), t.dtype) for t in (one, other)}
    same = one.data_ptr() == other.data_ptr()
    return len(forms) == 1 and (same or torch.equal(*(_bits(t) for t in (one, other))))


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor: NaN is itself there, and the two zeros are not one."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def captured(name: str, part: Part, tell: OnStage = untold) -> describe.Ahead:
    """A program, captured whole.

    Raises:
        ArtifactError: FL1107, if it cannot be.

    """
    tell(Stage(f"capture {name}"))
    model = part.model
    if not isinstance(model, nn.Module) and (part.args or part.kwargs or part.dynamic_shapes):
        raise errors.INVALID_OPTION.error(
            "args", found=f"inputs for a {type(model).__name__}", expected="none: it has its own"
        )
    try:
        if isinstance(model, Whole):
            return model.ready(name)
        with _torch.refusals_to(log):
            if isinstance(model, torch.export.ExportedProgram):
                found = frontend.capture_program(model, name=name)
            else:
                found = frontend.capture_export(
                    model, part.args, part.kwargs, dynamic_shapes=part.dynamic_shapes, name=name
                )
    except errors.FuselineError:
        raise
    except Exception as error:
        if part.otherwise is not None and _torch.is_unproven_size(error):
            log.info("%s: %s; captured in another form", name, first_line(error))
            tell(Stage(f"{name} is captured in another form: {first_line(error)}"))
            return captured(name, part.otherwise, tell)
        hint = "run torch.export on the model to see what it lacks"
        if "transformers.cache_utils" in str(error):
            hint = "export its steps, with --decode static:LENGTH, or set use_cache to False"
        raise errors.CANNOT_EXPORT.error(name, found=_reason(error), hint=hint) from error
    check_mode(name, model if isinstance(model, nn.Module) else None, found.captured.graph)
    return found


def _reason(error: Exception) -> str:
    """What torch says: of sizes that it wants otherwise, also which."""
    first, *rest = str(error).splitlines() or [""]
    sizes = [line.strip(" -") for line in rest if line.startswith("  - ")]
    which = f" {sizes[0]}" if sizes and "onstraint" in first else ""
    return f"{type(error).__name__}: {first}{which}"


__all__ = ["Model", "OnStage", "Part", "Stage", "captured", "common_tensors", "untold"]
