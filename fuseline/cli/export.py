"""Compile a model ahead of time, and write it to one file that runs without a compiler.

A language model with --decode becomes two programs over one cache, a prefill and a step, which
`fuseline generate` runs. Any other model becomes one program, as its forward pass is; so do an ONNX
model, whose inputs --input can narrow, and a program that torch.export has saved. No GPU is needed
for any target. Code for the CPU of another kind of machine is not made: export there.
"""

from __future__ import annotations

import argparse
import inspect
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fuseline.cli import export_onnx
from fuseline.cli.arguments import (
    add_check_numerics,
    add_html,
    add_json,
    add_model,
    add_remarks,
    add_require,
    count,
    options,
)
from fuseline.cli.output import Output, columns
from fuseline.config import Config
from fuseline.errors import BAD_ARGUMENT
from fuseline.report_tables import worst

if TYPE_CHECKING:
    from fuseline.artifact.manifest import Text
    from fuseline.cli.models import LoadedModel
    from fuseline.exporting import Exported, Part
    from fuseline.exporting.capture import Stage
    from fuseline.report import NumericsRecord

EXAMPLE = """\
  fuseline export smollm2 --decode static:512 --target cpu --target sm_90 -o smollm2.fuse
  fuseline export my_module:make_model --input x:float32[B=1..64,128] -o model.fuse
  fuseline export model.onnx --input ids:int64[B=1..8,S=1..512] --target sm_90 -o model.fuse
  fuseline export program.pt2 -o model.fuse
  fuseline export smollm2 --format onnx -o smollm2.onnx"""

TARGETS = ("cpu", "sm_80", "sm_90", "sm_100", "sm_120")
ISAS = ("native", "x86-64-v3", "baseline")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model(parser)
    parser.add_argument("--output", "-o", metavar="FILE", required=True, help="the file to write")
    parser.add_argument(
        "--target",
        action="append",
        choices=TARGETS,
        help="what to compile for; may be repeated (default: cpu)",
    )
    parser.add_argument(
        "--cpu-isa",
        action="append",
        choices=ISAS,
        help="instruction set of the CPU; may be repeated: the best is taken where it is loaded "
        "(default: native, that of this machine)",
    )
    parser.add_argument(
        "--emit",
        choices=("sass", "ptx", "both"),
        help="for GPUs: machine code, PTX that the driver compiles (that of sm_80 for later GPUs, "
        "too), or both (default: sass)",
    )
    parser.add_argument(
        "--input",
        metavar="NAME:DTYPE[DIMS]",
        action="append",
        default=[],
        help="an input of the forward pass, by name, or in order where it takes any number; a dim "
        "is a size, a range, or a named range: input_ids:int64[B=1..8,S=1..2048]; may be repeated",
    )
    parser.add_argument(
        "--decode",
        metavar="static:LENGTH",
        help="a language model's prefill and decode step over a cache of so many tokens",
    )
    parser.add_argument("--batch", type=count, help="sequences of --decode (default: 1)")
    parser.add_argument(
        "--weights",
        choices=("embed", "external"),
        default="embed",
        help="in the file, or in one beside it (default: embed)",
    )
    parser.add_argument(
        "--sign", metavar="KEY", help="a PEM file with a private key of Ed25519: sign the file"
    )
    parser.add_argument("--licence", default="", help="of the model; it is written into the file")
    parser.add_argument(
        "--strict", action="store_true", help="fail where an operation has no generated kernel"
    )
    add_remarks(parser)
    add_require(parser)
    add_check_numerics(parser)
    add_html(parser)
    export_onnx.add_arguments(parser)
    add_json(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Export, and print what was written."""
    export_onnx.check(arguments)
    given = options(arguments)
    if arguments.strict:
        given["strict"] = True
    config = Config.of(given)
    length = _length(arguments)
    path, key = Path(arguments.output), None if arguments.sign is None else Path(arguments.sign)
    _check_files(path, key)
    with out.step(f"loading {arguments.model}"):
        from fuseline.cli import models

        loaded = models.load(arguments.model, config, dtype=arguments.dtype, inputs=arguments.input)
    started = time.perf_counter()
    from fuseline.exporting import export_parts
    from fuseline.exporting.export import by_torch, placed

    parts, text, tokenizer = _parts(arguments, loaded, length)
    if arguments.format == "onnx":
        return export_onnx.run(arguments, parts["main"], config, _command(sys.argv[1:]), out)
    with _Steps(out) as steps:
        exported = export_parts(
            parts,
            path=path,
            targets=arguments.target or ["cpu"],
            cpu_isa=arguments.cpu_isa or ["native"],
            emit=arguments.emit or "sass",
            embed_weights=arguments.weights == "embed",
            licence=arguments.licence,
            text=text,
            tokenizer=tokenizer,
            command=_command(sys.argv[1:]),
            versions=("transformers", "triton"),
            sign=key,
            progress=steps.tell,
            config=config,
        )
    seconds = time.perf_counter() - started
    operations = by_torch(exported.programs)
    data: list[dict[str, object]] = [
        {"operation": r.symbol, "where": r.origin, "steps": r.launches, "reason": r.reason}
        for r in operations
    ]
    by_torch_at = [placed(record) for record in operations]
    text = _text(exported, seconds, by_torch_at)
    out.result(_data(exported, seconds, data), text)
    return 0


def _check_files(path: Path, key: Path | None) -> None:
    """What is wrong with the files that were named, told before a model is loaded."""
    from fuseline.artifact.archive import check_place
    from fuseline.artifact.signing import check_key

    check_place(path)
    if key is not None:
        check_key(key)


_PLACES = ("--output", "--sign", "--html", "--remarks-output")
"""Flags whose values say where files are written, or where a key lies."""

_PLACES_SET = ("html", "remarks_output", "dump_dir", "cache_dir")
"""Options of ``--set`` whose values do."""


def _command(words: list[str]) -> str:
    """What was typed, but for the places of files that are written and of keys."""
    found = ["fuseline"]
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if _is_place(flag):
            if not equals and (flag == "-o" or flag.startswith("--")):  # not -oFILE
                next(rest, None)
        elif flag != "--set":
            found.append(word)
        else:
            value = value if equals else next(rest, "")
            if value.partition("=")[0].strip().replace("-", "_") not in _PLACES_SET:
                found += [word] if equals else [word, value]
    return shlex.join(found)


def _is_place(flag: str) -> bool:
    """Whether a flag, which may be cut short as argparse allows, is one of those of places."""
    if not flag.startswith("--"):
        return flag.startswith("-o")
    cut = len(flag) > len("--") and flag != "--remarks"
    return cut and any(place.startswith(flag) for place in _PLACES)


class _Steps:
    """Shows how far an export is: a step for each stage, and its kernels within."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._what = ""
        self._step: Any = None
        self._show: Any = None

    def __enter__(self) -> _Steps:
        return self

    def __exit__(self, *error: object) -> None:
        self._end(*error)

    def tell(self, stage: Stage) -> None:
        """Show a stage."""
        if stage.what != self._what:
            self._end(None, None, None)
            self._what = stage.what
            self._step = self._out.step(stage.what)
            self._show = self._step.__enter__()
        elif stage.total:
            self._show(f"{stage.done} of {stage.total}, {stage.name}")

    def _end(self, *error: object) -> None:
        step, self._step = self._step, None
        if step is not None:
            step.__exit__(*(error or (None, None, None)))


def _length(arguments: argparse.Namespace) -> int | None:
    """Tokens of the cache, where there is one."""
    if arguments.decode is None:
        if arguments.batch is not None:
            found, expected = f"{arguments.batch} without --decode", "a range in --input"
            raise BAD_ARGUMENT.error("--batch", found=found, expected=expected)
        return None
    kind, _, number = arguments.decode.partition(":")
    if kind != "static" or not number.isdecimal() or int(number) < 2:
        expected = "static:LENGTH, with 2 tokens or more"
        raise BAD_ARGUMENT.error("--decode", found=arguments.decode, expected=expected)
    if arguments.input:
        raise BAD_ARGUMENT.error("--input", found="one beside --decode", expected="one of the two")
    return int(number)


def _parts(
    arguments: argparse.Namespace, loaded: LoadedModel, length: int | None
) -> tuple[dict[str, Part], Text | None, str | None]:
    """The programs to write, and of a language model what its text needs."""
    from torch import nn

    from fuseline.errors import NOT_A_TEXT_MODEL
    from fuseline.exporting import Part, inputs

    if loaded.whole is not None:
        if length is not None:
            raise NOT_A_TEXT_MODEL.error(loaded.name, found="a program without a cache")
        return {"main": Part(loaded.whole)}, None, None
    model: Any = loaded.model
    if not isinstance(model, nn.Module):
        model = _Function(model)
    if length is not None:
        from fuseline.artifact.manifest import Text
        from fuseline.cli.generation import stop_tokens
        from fuseline.exporting import decoding

        if not hasattr(model, "generation_config"):
            raise NOT_A_TEXT_MODEL.error(loaded.name, found=f"a {type(model).__name__}")
        stop = tuple(sorted(stop_tokens(model)))
        batch = arguments.batch or 1
        text = Text(batch, length, stop, None)
        return decoding.parts(model, batch, length), text, _tokenizer(loaded)
    if not arguments.input:
        if loaded.tokenizer is None and not hasattr(model, "generation_config"):
            return {"main": Part(model, loaded.args, loaded.kwargs)}, None, None
        most = getattr(getattr(model, "config", None), "max_position_embeddings", 2048)
        arguments.input = [f"input_ids:int64[B=1..64,S=1..{most}]"]
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", 2)
    tensors, dynamic = inputs.examples([inputs.parse(t) for t in arguments.input], vocabulary)
    kept = {k: v for k, v in loaded.kwargs.items() if k not in tensors and not _is_tensor(v)}
    forward: Any = model.forward
    # torch's export takes no ranges beside what only **kwargs takes: the configuration says it too.
    for name in kept.keys() - inspect.signature(forward).parameters.keys():
        if hasattr(getattr(model, "config", None), name):
            setattr(model.config, name, kept.pop(name))
    args, kwargs = inputs.arguments(forward, {**tensors, **kept})
    shapes = None
    if any(dynamic.values()):
        ranges = inputs.arguments(forward, {**dynamic, **dict.fromkeys(kept)})
        shapes = inputs.by_parameter(forward, *ranges)
    return {"main": Part(model, args, kwargs, shapes)}, None, None


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _tokenizer(loaded: LoadedModel) -> str | None:
    """The tokenizer in the format of the package tokenizers, where it has that form."""
    inner: Any = getattr(loaded.tokenizer, "backend_tokenizer", None)
    return None if inner is None else inner.to_str()


def _Function(function: Any) -> Any:  # noqa: N802 -- a class that is made where torch is there
    """A function of tensors as a module."""
    from torch import nn

    class Function(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

    own = inspect.Parameter("_self", inspect.Parameter.POSITIONAL_ONLY)
    with suppress(ValueError):  # a function that is not written in Python may have no signature
        signature = inspect.signature(function)
        taken = [own, *signature.parameters.values()]
        cast("Any", Function.forward).__signature__ = signature.replace(parameters=taken)
    return Function()


def _data(
    exported: Exported, seconds: float, operations: list[dict[str, object]]
) -> dict[str, object]:
    manifest = exported.manifest
    return {
        "path": str(exported.path),
        "bytes": exported.nbytes,
        "seconds": seconds,
        "programs": list(manifest.programs),
        "targets": [
            {"name": t.title, "needs": list(t.features), "kernels": len(t.sources)}
            for t in manifest.targets
        ],
        "run_by_torch": operations,
        "numerics": [
            {"program": name, "target": target, "records": [asdict(record) for record in records]}
            for (name, target), records in exported.numerics.items()
        ],
    }


def _numbers(records: Sequence[NumericsRecord]) -> str:
    """What `check_numerics` found, in a line."""
    nearest = worst(records)
    if nearest is None:
        return "no rewrite gave a value that could be compared"
    compared = sum(record.values > 0 for record in records)
    return (
        f"{compared} rewrites and passes checked, the nearest to the limit at "
        f"{nearest.share:.2f} of what is allowed"
    )


def _text(exported: Exported, seconds: float, operations: list[str]) -> str:
    manifest = exported.manifest
    rows = [
        ["file", f"{exported.path}, {exported.nbytes / 1e6:.1f} MB, in {seconds:.0f} s"],
        ["programs", ", ".join(manifest.programs)],
    ]
    for target in manifest.targets:
        needs = f", needs {' '.join(target.features)}" if target.features else ""
        rows.append([target.title, f"{len(target.sources)} kernels{needs}"])
    rows += [["by torch", operation] for operation in operations]
    rows += [
        ["numbers", f"{name} for {target}: {_numbers(records)}"]
        for (name, target), records in exported.numerics.items()
    ]
    return columns(rows, indent="")
