"""`fuseline export --format onnx`: a model for any runtime of ONNX."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fuseline.cli.arguments import REMARKS, count
from fuseline.cli.files import kind_of
from fuseline.cli.output import Output, columns
from fuseline.config import Config
from fuseline.errors import BAD_ARGUMENT, CANNOT_EXPORT

if TYPE_CHECKING:
    from fuseline.exporting import Part
    from fuseline.exporting.onnx.file import Written

_COMPILED = (*REMARKS, "require", "check_numerics", "html")
_OF_ARTIFACTS = ("target", "cpu_isa", "emit", "decode", "sign", "strict", *_COMPILED)
"""Options that are about compiled code, of which a model of ONNX has none."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is of this format alone."""
    parser.add_argument(
        "--format",
        choices=("fuse", "onnx"),
        default="fuse",
        help="compiled code in one file, or a model for any runtime of ONNX (default: fuse)",
    )
    parser.add_argument(
        "--opset", type=count, help="version of the operators of --format onnx (default: 23)"
    )
    parser.add_argument(
        "--dense-experts",
        action="store_true",
        help="with --format onnx: every expert computes every token, so that no size depends on "
        "data",
    )


def check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be, before a model is loaded."""
    other = _OF_ARTIFACTS if arguments.format == "onnx" else ("opset", "dense_experts")
    for name in other:
        if getattr(arguments, name):
            option = f"--{name.replace('_', '-')}"
            expected = "none of it"
            found = f"one with --format {arguments.format}"
            raise BAD_ARGUMENT.error(option, found=found, expected=expected)
    if arguments.format == "onnx":
        from fuseline.exporting.onnx.versions import check_version

        check_version(arguments.opset)
        if kind_of(Path(arguments.model)) == "onnx":
            found = "an ONNX model, which is in this format already"
            raise CANNOT_EXPORT.error(arguments.model, found=found, hint="copy the file")


def run(
    arguments: argparse.Namespace, part: Part, config: Config, command: str, out: Output
) -> int:
    """Write the model, and print what is in it."""
    from fuseline.exporting.onnx import export_onnx

    started = time.perf_counter()
    with out.step(f"writing {arguments.output}"):
        written = export_onnx(
            part.model,
            part.args,
            part.kwargs,
            path=Path(arguments.output),
            dynamic_shapes=part.dynamic_shapes,
            opset=arguments.opset,
            embed_weights=arguments.weights == "embed",
            dense_experts=arguments.dense_experts,
            disable=config.disable,
            licence=arguments.licence,
            command=command,
        )
    seconds = time.perf_counter() - started
    out.result(_data(written, seconds), _text(written, seconds))
    return 0


def _data(written: Written, seconds: float) -> dict[str, object]:
    return {
        "path": str(written.path),
        "bytes": written.nbytes,
        "weights": None if written.beside is None else written.beside[0],
        "weight_bytes": None if written.beside is None else written.beside[1],
        "seconds": seconds,
        "opset": written.opset,
        "operators": dict(written.operators),
        "functions": dict(written.functions),
    }


def _text(written: Written, seconds: float) -> str:
    rows = [["file", f"{written.path}, {written.nbytes / 1e6:.1f} MB, in {seconds:.0f} s"]]
    if written.beside is not None:
        name, size = written.beside
        rows.append(["weights", f"{name}, {size / 1e6:.1f} MB"])
    rows.append(["checked", f"by onnx.checker, operators of version {written.opset}"])
    rows.append(["operators", _counts(written.operators)])
    if written.functions:
        rows.append(["functions", _counts(written.functions)])
    return columns(rows, indent="")


def _counts(given: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in given.items())
