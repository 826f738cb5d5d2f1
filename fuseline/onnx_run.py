"""ONNX models compiled for the CPU, through the pipeline that captured programs go through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fuseline import errors
from fuseline.compiler import Compiler
from fuseline.config import Config
from fuseline.frontend.execute import Compiled
from fuseline.frontend.importer import DependsOnData
from fuseline.frontend.onnx.program import OnnxProgram
from fuseline.ir.core import Func
from fuseline.report import Report
from fuseline.runtime import packing


@dataclass(frozen=True)
class CompiledOnnx:
    """An ONNX model that runs from its kernels.

    Attributes:
        program: the imported model.
        compiled: what runs its func.
    """

    program: OnnxProgram
    compiler: Compiler
    compiled: Compiled

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs by name.

        Raises:
            InputError: FL0823, the inputs do not fit.

        """
        return self.program.run_by(self.compiled, {n: _dense(x) for n, x in inputs.items()})

    def report(self) -> Report:
        """What was fused, and which kernels there are."""
        return self.compiler.report()


def compile_onnx(
    program: OnnxProgram, config: Config | None = None, **options: Any
) -> CompiledOnnx:
    """Compile an imported model for the CPU.

    Weights that merged products read are brought side by side at the first call, as those of a
    compiled module are.

    Args:
        program: what `fuseline.frontend.onnx.import_onnx` gave.
        config: the options, or ``options``: single fields of `Config`.

    Raises:
        LoadError: FL0824, a size is left that only the data tells; ``program.run`` still runs it.

    """
    compiler = Compiler(config or Config.of(options))

    def make() -> Func:
        func = program.func.clone()
        _pin(func, program)
        return func

    try:
        return CompiledOnnx(program, compiler, compiler.compile_func(program.func.name, make))
    except DependsOnData as error:
        raise errors.ONNX_SIZE.error(found=str(error)) from error


def _dense(tensor: Tensor) -> Tensor:
    """A tensor in row-major order, one without elements too: that may have any strides."""
    return tensor.contiguous() if tensor.numel() else tensor.new_empty(tensor.shape)


def _pin(func: Func, program: OnnxProgram) -> None:
    """Note on each parameter why it cannot be moved beside others, where that is so."""
    weights = dict(zip(func.args[len(program.inputs) :], program.tensors, strict=True))
    params = {a: t for a, t in weights.items() if a.origin is not None and a.origin.kind == "param"}
    reasons = packing.pinned({str(i): t for i, t in enumerate(params.values())})
    for number, arg in enumerate(params):
        if arg.origin is not None:
            arg.origin = replace(arg.origin, pinned=reasons.get(str(number), ""))


__all__ = ["CompiledOnnx", "compile_onnx"]
