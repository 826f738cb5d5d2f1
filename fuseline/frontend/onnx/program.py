"""An imported ONNX model: its func, and the tensors of its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fuseline import errors
from fuseline.frontend.captured import Argument
from fuseline.ir.core import Func, IRError
from fuseline.ir.evaluate import evaluate


@dataclass(frozen=True)
class OnnxProgram:
    """An ONNX model as an IR func.

    Attributes:
        func: its arguments are the model's inputs, then those of the weights that it reads.
        inputs: the names of the model's inputs, in order.
        outputs: the names of its outputs, in order.
        tensors: the weights, for the arguments behind the inputs.
        fixed: inputs that were taken as constant; a run must give the same.
    """

    func: Func
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    fixed: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def arguments(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """What the func takes for a call with these inputs, by name.

        Raises:
            InputError: FL0823, an input is missing, unknown, of another type, or not what it was
                fixed to.

        """
        missing = [name for name in self.inputs if name not in inputs]
        unknown = [name for name in inputs if name not in self.inputs]
        if missing or unknown:
            raise errors.ONNX_INPUT.error(
                ", ".join(missing or unknown),
                found="none given" if missing else "a value for no input of the model",
                expected=", ".join(self.inputs) or "no inputs",
            )
        given = [inputs[name] for name in self.inputs]
        for name, tensor, arg in zip(self.inputs, given, self.func.args, strict=False):
            if tensor.dtype != arg.dtype.torch or tensor.dim() != len(arg.shape):
                found = f"{tensor.dtype}, {list(tensor.shape)}"
                raise errors.ONNX_INPUT.error(name, found=found, expected=str(arg.type))
            if name in self.fixed and not _same(tensor, self.fixed[name]):
                raise errors.ONNX_INPUT.error(
                    name, found="another value", expected="the one that it was imported with"
                )
        return [*given, *self.tensors]

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs by name, computed by the references of the ops.

        Raises:
            InputError: FL0823, the inputs do not fit.

        """
        return self.run_by(lambda arguments: evaluate(self.func, arguments), inputs)

    def run_by(
        self, run: Callable[[Sequence[Argument]], Sequence[Tensor]], inputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The outputs by name, computed by something that runs the func, such as its compiled form.

        Raises:
            InputError: FL0823, the inputs do not fit.

        """
        arguments = self.arguments(inputs)
        try:
            with torch.no_grad():
                results = run(arguments)
        except IRError as error:
            raise errors.ONNX_INPUT.error(found=str(error)) from error
        return dict(zip(self.outputs, results, strict=True))


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


__all__ = ["OnnxProgram"]
