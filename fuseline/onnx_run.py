"""ONNX models compiled for the CPU, through the pipeline that captured programs go through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from fuseline import errors
from fuseline.build import OnProgress
from fuseline.compiler import Compiler
from fuseline.config import Config
from fuseline.frontend.captured import Argument
from fuseline.frontend.execute import Compiled
from fuseline.frontend.importer import DependsOnData
from fuseline.frontend.onnx.program import OnnxProgram
from fuseline.report import Report


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
        return self.program.run_by(self._run, inputs)

    def _run(self, arguments: Sequence[Argument]) -> Sequence[Tensor]:
        """The compiled program takes no inputs that were constant when it was imported."""
        program = self.program
        inputs = cast("Sequence[Tensor]", arguments[: len(program.inputs)])
        named = zip(program.inputs, inputs, strict=True)
        return self.compiled(
            [*(_dense(x) for n, x in named if n not in program.fixed), *program.tensors]
        )

    def report(self) -> Report:
        """What was fused, and which kernels there are."""
        return self.compiler.report()


def compile_onnx(
    program: OnnxProgram,
    config: Config | None = None,
    *,
    progress: OnProgress | None = None,
    **options: Any,
) -> CompiledOnnx:
    """Compile an imported model for the CPU.

    Weights that merged products read are brought side by side at the first call, as those of a
    compiled module are.

    Args:
        program: what `fuseline.frontend.onnx.import_onnx` gave.
        config: the options, or ``options``: single fields of `Config`.
        progress: called as kernels are built.

    Raises:
        LoadError: FL0820, it is no imported model; FL0824, a size is left that only the data
            tells: ``program.run`` still runs it.
        UsageError: FL0101, for a target that is no CPU.

    """
    if not isinstance(cast("object", program), OnnxProgram):
        raise errors.ONNX_FILE.error(
            found=type(program).__name__,
            expected="an OnnxProgram",
            hint="give compile_onnx what import_onnx gives",
        )
    config = config or Config.of(options)
    if config.target not in ("auto", "cpu"):
        raise errors.INVALID_OPTION.error(
            "target",
            found=repr(config.target),
            expected="'cpu', where the model runs: fuseline.export builds it for GPUs",
        )
    compiler = Compiler(config, progress)
    try:
        return CompiledOnnx(program, compiler, compiler.compile_import(program.imported()))
    except DependsOnData as error:
        raise errors.ONNX_SIZE.error(found=str(error)) from error


def _dense(tensor: Tensor) -> Tensor:
    """A tensor in row-major order, one without elements too: that may have any strides."""
    return tensor.contiguous() if tensor.numel() else tensor.new_empty(tensor.shape)


__all__ = ["CompiledOnnx", "compile_onnx"]
