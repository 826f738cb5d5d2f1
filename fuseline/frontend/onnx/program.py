"""An imported ONNX model: its func, and the tensors of its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from fuseline import errors
from fuseline.frontend.captured import Argument, FromGraph, InputKind
from fuseline.frontend.imported import Imported, Item, Ready, Whole
from fuseline.ir.core import Func, IRError
from fuseline.ir.evaluate import evaluate


@dataclass(frozen=True)
class OnnxProgram(Whole):
    """An ONNX model as an IR func.

    Attributes:
        func: its arguments are the model's inputs, then those of the weights that it reads.
        inputs: the names of the model's inputs, in order.
        outputs: the names of its outputs, in order.
        tensors: the weights, for the arguments behind the inputs.
        fixed: inputs that were taken as constant; a run must give the same.
        initializers: the names of the weights that the file stores; others were made of them, or
            are constants of its nodes.
        origin: what made the model, as the file says it.
    """

    func: Func
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    fixed: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    initializers: frozenset[str] = frozenset()
    origin: str = ""

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        return f"ONNX model of {self.origin}" if self.origin else "ONNX model"

    def imported(self, name: str = "onnx") -> Imported:
        """The program, to be compiled. Weights have the names of the file: a second tensor of one
        name (a matrix that is also read transposed) has a number behind it. Inputs that were taken
        as constant are left out.

        Args:
            name: of the program.

        """
        func = self.func.clone()
        func.name = name
        args = func.args[: len(self.inputs)]
        kept = [arg for arg, n in zip(args, self.inputs, strict=True) if n not in self.fixed]
        weights = func.args[len(self.inputs) :]
        func.args[:] = [*kept, *weights]
        items = [Item(n, InputKind.USER) for n in self.inputs if n not in self.fixed]
        taken = set[str]()
        for arg, tensor in zip(weights, self.tensors, strict=True):
            assert arg.origin is not None
            stored = arg.origin.kind == "param" or arg.origin.name in self.initializers
            kind = InputKind.PARAMETER if stored else InputKind.CONSTANT
            items.append(Item(_other_than(taken, arg.origin.name), kind, tensor))
        returns = tuple(FromGraph(i) for i in range(len(self.outputs)))
        return Imported(func, tuple(items), returns, name=name)

    def ready(self, name: str) -> Ready:
        """The program, to be compiled ahead of time; it gives the outputs by their names.

        Args:
            name: of the program in its artifact.

        """
        program = self.imported(name)
        takes = tuple(i.name for i in program.inputs if i.kind is InputKind.USER)
        return Ready(program, takes, self.outputs)

    def arguments(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """What the func takes for a call with these inputs, by name.

        Raises:
            InputError: FL0823, an input is missing, unknown, of another type, or not what it was
                fixed to.

        """
        _check_mapping(inputs)
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
            if not isinstance(cast("object", tensor), Tensor):
                found = type(tensor).__name__
                raise errors.ONNX_INPUT.error(name, found=found, expected="a tensor of torch")
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


def _check_mapping(inputs: object) -> None:
    if not isinstance(inputs, Mapping):
        raise errors.ONNX_INPUT.error(
            found=type(inputs).__name__, expected="a dict of tensors by the names of inputs"
        )


def _other_than(taken: set[str], name: str) -> str:
    """A name that no other weight has, noted among those."""
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}.{number}"
    taken.add(free)
    return free


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


__all__ = ["OnnxProgram"]
