"""Models written as ONNX: standard operators, and functions of the model's own for what is fused.

Needs the package ``onnx`` (``pip install fuseline[onnx]``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuseline.exporting.capture import Model, Part
from fuseline.exporting.onnx.versions import check_version

if TYPE_CHECKING:
    from fuseline.exporting.onnx.file import Written


def export_onnx(
    model: Model,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    path: str | Path,
    dynamic_shapes: Any = None,
    opset: int | None = None,
    embed_weights: bool = True,
    dense_experts: bool = False,
    disable: Sequence[str] = (),
    licence: str = "",
    command: str = "",
) -> Written:
    """Write a module as an ONNX model, which any runtime of the standard operators runs.

    What the compiler recognises becomes the standard operator that means the same, or a function in
    the domain ``fuseline`` with a body of standard operators. State that the model writes becomes
    an input, and an output ``<name>_out``.

    Args:
        model: the module, on the CPU; or, without anything else about its inputs, an
            ``ExportedProgram``.
        args: example positional arguments.
        kwargs: example keyword arguments.
        path: of the file to write, ``.onnx`` by custom; it is replaced as a whole.
        dynamic_shapes: which dims may vary, as ``torch.export.export`` takes it.
        opset: the version of the standard operators, 23 where nothing is said.
        embed_weights: False writes them to a file beside, ``<path>.<digest>.data``; so does a
            model of more than 2 GB.
        dense_experts: have every expert compute every token, so that no size depends on data.
        disable: names of passes to leave out, as in `fuseline.Config`.
        licence: of the model, for its metadata.
        command: what was typed, for its metadata.

    Raises:
        LoadError: FL0802, the package onnx is not installed.
        UsageError: FL0101, there is no such version of the standard operators.
        ArtifactError: FL1106, it cannot be written; FL1107, it cannot be captured whole; FL1109, it
            has something that has no form in ONNX.

    """
    version = check_version(opset)
    from fuseline.exporting.onnx.model import How, export

    part = Part(model, args, dict(kwargs or {}), dynamic_shapes)
    about = {"licence": licence, "command": command}
    how = How(version, dense_experts, tuple(disable))
    return export(part, Path(path), how, embed=embed_weights, about=about)


__all__ = ["export_onnx"]
