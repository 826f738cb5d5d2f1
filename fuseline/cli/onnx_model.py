"""An ONNX model as the commands use a model: called by keywords, compiled, reported on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch import Tensor

from fuseline.cli.models import LoadedModel
from fuseline.errors import BUILT_FOR_ANOTHER, MISSING_PACKAGE, ONNX_SIZE
from fuseline.exporting.inputs import parse
from fuseline.frontend.importer import DependsOnData
from fuseline.ir.core import Func
from fuseline.ir.evaluate import evaluate
from fuseline.ir.types import Range, substitute

if TYPE_CHECKING:
    from fuseline.build import OnProgress
    from fuseline.compiler import Compiler
    from fuseline.config import Config
    from fuseline.frontend.onnx import OnnxProgram
    from fuseline.onnx_run import CompiledOnnx
    from fuseline.report import Report


def load(path: Path, inputs: Sequence[str], shape: tuple[int, int]) -> LoadedModel:
    """Import a file, and give it seeded inputs.

    Args:
        path: of the file.
        inputs: those that are narrower than in the file, as ``--input`` has them.
        shape: of inputs whose size the file leaves open: of the first dim, and of others.

    Raises:
        LoadError: FL0802 without the package onnx; FL0820 to FL0822, for what is not read.
        InputError: FL0823, for inputs that the file does not have, or has otherwise.
    """
    specs = [parse(text) for text in inputs]
    try:
        from fuseline.frontend.onnx import import_onnx
    except ImportError as error:
        if error.name != "onnx":
            raise
        raise MISSING_PACKAGE.error("onnx", hint="pip install onnx") from None
    program = import_onnx(path, inputs=specs)
    examples = _examples(program, shape)
    return LoadedModel(str(path), OnnxModel(program), (), examples, whole=program)


@dataclass(frozen=True)
class OnnxModel:
    """An imported model that is called with its inputs by name: run op by op, in any precision."""

    program: OnnxProgram

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        """The outputs by name."""
        program = self.program
        given = [inputs[name] for name in program.inputs]
        results = evaluate(program.func, [*given, *program.tensors])
        return dict(zip(program.outputs, results, strict=True))

    def compile_for(self, config: Config, progress: OnProgress) -> _OnCpu | _Elsewhere:
        """Its compiled form; for a GPU the kernels are built, and a call runs op by op.

        Raises:
            LoadError: FL0824, a size is left that only the data tells.
        """
        from fuseline.compiler import Compiler
        from fuseline.onnx_run import compile_onnx

        if config.target in ("auto", "cpu"):
            return _OnCpu(compile_onnx(self.program, config, progress=progress))
        compiler = Compiler(config, progress)
        try:
            compilation = compiler.ahead(self.program.imported())
        except DependsOnData as error:
            raise ONNX_SIZE.error(found=str(error)) from error
        why = "tensors on the cpu"
        compilation.op_by_op = f"built for {config.target}, {why}"
        BUILT_FOR_ANOTHER.warn(compilation.name, found=why)
        return _Elsewhere(self, compiler)


@dataclass(frozen=True)
class _OnCpu:
    """Runs from kernels."""

    compiled: CompiledOnnx

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        return self.compiled(inputs)

    def report(self) -> Report:
        return self.compiled.report()


@dataclass(frozen=True)
class _Elsewhere:
    """Built for another device."""

    model: OnnxModel
    compiler: Compiler

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        return self.model(**inputs)

    def report(self) -> Report:
        return self.compiler.report()


def _examples(program: OnnxProgram, shape: tuple[int, int]) -> dict[str, Tensor]:
    """Seeded inputs; integers are 0 or 1, which are indices of any table."""
    func = program.func
    args = func.args[: len(program.inputs)]
    sizes = _sizes(func, shape)
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {}
    for name, arg in zip(program.inputs, args, strict=True):
        extents = [substitute(d, sizes) for d in arg.shape]
        kind: Any = arg.dtype.torch
        if arg.dtype.is_float:
            found[name] = torch.randn(extents, generator=generator).to(kind)
        else:
            found[name] = torch.randint(0, 2, extents, generator=generator).to(kind)
    return found


def _sizes(func: Func, shape: tuple[int, int]) -> Mapping[str, int]:
    """A size for each symbol, as far as its range goes."""
    sizes: dict[str, int] = {}
    for arg in func.args:
        for axis, extent in enumerate(arg.shape):
            if isinstance(extent, sympy.Symbol):
                limits = func.symbols.get(str(extent), Range())
                size = max(limits.lo, shape[0] if axis == 0 else shape[1])
                size = size if limits.hi is None else min(size, limits.hi)
                sizes.setdefault(str(extent), size)
    return sizes


__all__ = ["OnnxModel", "load"]
