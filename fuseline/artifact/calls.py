"""A call of a program from an artifact: from nested arguments to flat ones, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from fuseline import errors
from fuseline.artifact import trees
from fuseline.artifact.program import Constant, Counted, Given, Passed, ProgramFile
from fuseline.runtime.executor import Program
from fuseline.runtime.plan import ArgSpec, Expr, View

LIE_AS_THE_EXAMPLE = "give it as the example of the export was, such as by .contiguous()"


class Call:
    """A program that is called as the model was when it was exported.

    Attributes:
        name: of the program.
        file: what it takes and gives.
        program: the plan with its kernels.
        room: tokens that its cache has room for, where it is a language model's.
    """

    def __init__(
        self,
        name: str,
        file: ProgramFile,
        program: Program,
        run: Callable[[Sequence[Any]], Sequence[Tensor]],
        fixed: Mapping[int, Tensor],
        room: int | None = None,
    ) -> None:
        self.name, self.file, self.program, self.room = name, file, program, room
        self._run = run
        self._fixed = fixed
        self._order = [i for i, item in enumerate(file.inputs) if item.kind in ("user", "symbol")]
        self._counts = {i: int(n.name) for i, n in enumerate(file.inputs) if n.kind == "count"}
        self._numbers = {n.input: n for n in file.numbers}
        self._composite = _composite(file)
        self._movable = _movable(file)
        self._value = _evaluator(file)

    def __repr__(self) -> str:
        inputs = zip(self.file.inputs, self.program.plan.args, strict=True)
        taken = [f"{i.name}: {_form(s)}" for i, s in inputs if i.kind in ("user", "symbol")]
        given = [self._gives(owed) for owed in self.file.returns]
        return f"{self.name}({', '.join(taken)}) -> {', '.join(given)}"

    def _gives(self, owed: Given | Passed | Counted | Constant) -> str:
        match owed:
            case Given(number):
                return _form(self.program.plan.returns[number])
            case Passed(number, shape):
                return f"{self.file.inputs[number].name} as [{', '.join(map(str, shape))}]"
            case Counted(value):
                return f"int {value}"
            case Constant(value):
                return repr(value)

    @property
    def state(self) -> dict[str, Tensor]:
        """What the program writes and keeps from call to call, by name: caches, counters."""
        specs, inputs = self.program.plan.args, self.file.inputs
        return {inputs[i].name: t for i, t in self._fixed.items() if specs[i].written}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program.

        Raises:
            ArtifactError: FL1108.
            InputError: FL0901 to FL0905.

        """
        given: list[Any] = [self._fixed.get(i) for i in range(len(self.file.inputs))]
        try:
            leaves = list(trees.leaves_of_call(self.file.takes, args, kwargs))
        except ValueError as error:
            takes = str(self.file.takes)
            raise errors.WRONG_CALL.error(self.name, found=str(error), expected=takes) from error
        for number, leaf in zip(self._order, leaves, strict=True):
            given[number] = leaf
        own = list(given)
        copied = False
        for number in self._order:
            if _has_sign(given[number]):
                given[number] = self._resolved(number, given[number])
                copied = True
        for number in self.file.complex:
            given[number] = self._real(number, given[number])
        flat = list(given)
        for number, limits in self._numbers.items():
            flat[number] = self._in_memory(number, given[number], limits.low, limits.high)
        for number, counted in self._counts.items():
            flat[number] = self._in_memory(counted, given[counted], 0, None)
        if copied:
            self._hold_apart(own)
        try:
            results = self._checked(flat)
        except errors.InputError as error:
            if error.diagnostic.code != errors.ARGUMENT_MISMATCH.code or not self._lay(flat):
                raise
            self._hold_apart(own)
            results = self._checked(flat)
        bound = self._bind(given)
        return trees.unflatten(
            self.file.gives, iter([self._owed(r, given, results, bound) for r in self.file.returns])
        )

    def _told(self, error: errors.IndexInputError) -> errors.FuselineError:
        """An error of a program with a cache says how much it takes, and how to get more."""
        if self.room is None:
            return error
        known = error.diagnostic
        hint = (
            f"check token ids against the vocabulary; the cache has room for {self.room} tokens: "
            "reset() of the loaded model empties it, and an export with --decode static:LENGTH "
            "makes a longer one"
        )
        return errors.INDEX_OUTSIDE.error(where=known.where, found=known.found, hint=hint)

    def _real(self, number: int, value: object) -> Tensor:
        """The real view of a complex argument."""
        if isinstance(value, Tensor) and value.is_complex():
            return torch.view_as_real(value)
        found = f"torch.{value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise errors.ARGUMENT_MISMATCH.error(
            self.file.inputs[number].name,
            found=found.replace("torch.torch", "torch"),
            expected="a complex tensor",
        )

    def _in_memory(self, number: int, value: object, low: int, high: int | None) -> Tensor:
        if type(value) is not int or value < low or (high is not None and value > high):
            limits = f"{low} to {high}" if high is not None else f"{low} or more"
            raise errors.ARGUMENT_MISMATCH.error(
                self.file.inputs[number].name, found=str(value), expected=f"an integer, {limits}"
            )
        return torch.full((), value, dtype=torch.int64, device=self.program.device)

    def _checked(self, flat: Sequence[Any]) -> Sequence[Tensor]:
        try:
            if self._composite:
                self._check(flat)
            return self._run(flat)
        except errors.IndexInputError as error:
            raise self._told(error) from None
        except errors.InputError as error:
            raise self._advised(error, flat) from None

    def _hold_apart(self, own: Sequence[object]) -> None:
        """Refuse a call whose own tensors share memory that is written: copies of them do not.

        Raises:
            InputError: FL0904.

        """
        if (shared := self.program.shared(own)) is not None:
            raise shared

    def _resolved(self, number: int, tensor: Tensor) -> Tensor:
        """A tensor whose numbers are in memory as they are: kernels know of no bits beside them.

        Raises:
            InputError: FL0902, where a copy cannot stand for it.

        """
        if number not in self._movable or self.program.plan.args[number].written:
            kind = "negative" if tensor.is_neg() else "conjugate"
            raise errors.ARGUMENT_MISMATCH.error(
                self.file.inputs[number].name,
                found=f"a tensor with torch's {kind} bit",
                expected="one without it, as this one is written or returned",
                hint="pass .resolve_conj().resolve_neg() of it",
            )
        with torch.no_grad():
            return tensor.resolve_conj().resolve_neg()

    def _advised(self, error: errors.InputError, flat: Sequence[Any]) -> errors.FuselineError:
        """An argument that lies otherwise: nothing can be compiled for it here."""
        known, usual = error.diagnostic, errors.ARGUMENT_MISMATCH
        if known.code != usual.code or known.hint != usual.hint:
            return error
        number = self.program.signature.match(list(flat))
        if isinstance(number, int) and number >= 0 and self._lies_otherwise(flat, number):
            return type(error)(replace(known, hint=LIE_AS_THE_EXAMPLE))
        return error

    def _lies_otherwise(self, flat: Sequence[Any], number: int) -> bool:
        """Whether an argument that does not fit is wrong in its strides alone."""
        tensor, spec = flat[number], self.program.plan.args[number]
        if not isinstance(tensor, Tensor) or tensor.device != self.program.device:
            return False
        if tensor.dtype != spec.dtype or tensor.dim() != len(spec.shape):
            return False
        try:
            value = self._value_of(flat)
        except (IndexError, TypeError, AttributeError):
            return False  # sizes are wrong, too
        steps = zip(tensor.shape, tensor.stride(), map(value, spec.strides), strict=True)
        fits = tuple(tensor.shape) == tuple(map(value, spec.shape))
        return fits and any(n > 1 and one != other for n, one, other in steps)

    def _value_of(self, flat: Sequence[Any]) -> Callable[[Expr], int]:
        """The value of each size of the plan under the sizes of a call, which may not fit."""
        sizes = [_size(flat[number], axis) for number, axis in self.program.plan.symbols.values()]
        return self.program.numbers(sizes)

    def _lay(self, flat: list[Any]) -> bool:
        """Put copies in the place of tensors whose strides are not those of the example, as a
        compiled model takes them; False where there are none.

        What is written, or returned itself, has to be the caller's own, and stays as it is.
        """
        plan = self.program.plan
        try:
            value = self._value_of(flat)
        except (IndexError, TypeError, AttributeError):
            return False  # sizes are wrong, too
        moved = False
        for number in self._movable:
            tensor, spec = flat[number], plan.args[number]
            if not isinstance(tensor, Tensor) or tensor.dim() != len(spec.strides):
                continue
            if tensor.layout is not torch.strided:
                continue
            strides = tuple(map(value, spec.strides))
            if tensor.stride() == strides or (spec.written and tensor.numel()):
                continue
            if not _is_dense(tensor.shape, strides):
                continue
            copy = torch.empty_strided(
                tensor.shape, strides, dtype=tensor.dtype, device=tensor.device
            )
            with torch.no_grad():
                flat[number] = copy.copy_(tensor)
            moved = True
        return moved

    def _check(self, flat: Sequence[Any]) -> None:
        """Hold sizes and strides that follow from others to them: tracing had guards for these."""
        value = self.program.numbers(self.program.check(flat))
        for number, axis, shape, stride in self._composite:
            tensor: Tensor = flat[number]
            far = tensor.shape[axis] > 1 and tensor.numel() > 0  # else no stride matters
            if tensor.shape[axis] != value(shape) or (far and tensor.stride(axis) != value(stride)):
                raise errors.ARGUMENT_MISMATCH.error(
                    self.file.inputs[number].name,
                    found=f"{list(tensor.shape)} with strides {list(tensor.stride())}",
                    expected=f"{value(shape)} in dim {axis}, which is {shape}, with a stride of "
                    f"{value(stride)}",
                    hint=LIE_AS_THE_EXAMPLE,
                )

    def _bind(self, given: Sequence[Any]) -> dict[str, int]:
        return {
            name: int(given[number] if axis < 0 else given[number].shape[axis])
            for name, (number, axis) in self.file.symbols.items()
        }

    def _owed(
        self,
        owed: Given | Passed | Counted | Constant,
        given: Sequence[Any],
        results: Sequence[Tensor],
        bound: Mapping[str, int],
    ) -> Any:
        match owed:
            case Given(number):
                return results[number]
            case Passed(number, shape, strides, offset):
                base = cast("Tensor", given[number])
                sizes = [self._value(e, bound) for e in shape]
                steps = [self._value(e, bound) for e in strides]
                start = int(base.storage_offset()) + self._value(offset, bound)
                return base.as_strided(sizes, steps, start)
            case Counted(expr):
                return self._value(expr, bound)
            case Constant(value):
                return value


def _form(spec: ArgSpec | View) -> str:
    """Type and sizes of a tensor, or the value of an integer."""
    if isinstance(spec, ArgSpec) and spec.kind == "int":
        return f"int {spec.value}"
    return f"{str(spec.dtype).removeprefix('torch.')}[{', '.join(map(str, spec.shape))}]"


def _has_sign(value: object) -> bool:
    """Whether the numbers of a tensor are not those in its memory, but negated or conjugated."""
    return isinstance(value, Tensor) and (value.is_neg() or value.is_conj())


def _size(argument: Any, axis: int) -> int:
    return int(argument if axis < 0 else argument.shape[axis])


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a tensor takes the memory of its elements and no more."""
    if any(s < 0 for s in strides):
        return False
    reach = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    return 0 in shape or reach == math.prod(shape)


def _movable(file: ProgramFile) -> list[int]:
    """The tensors of a call that a copy can stand for: they are not returned themselves."""
    returned = {r.input for r in file.returns if isinstance(r, Passed)}
    return [
        number
        for number, (item, spec) in enumerate(zip(file.inputs, file.plan.args, strict=True))
        if item.kind == "user" and spec.kind == "tensor" and number not in returned
    ]


def _composite(file: ProgramFile) -> list[tuple[int, int, Expr, Expr]]:
    """The dims of inputs whose size or stride is computed: input, dim, size, stride."""
    known = set(file.plan.symbols)

    def computed(expr: Expr) -> bool:
        return isinstance(expr, str) and expr not in known

    return [
        (number, axis, shape, stride)
        for number, (item, spec) in enumerate(zip(file.inputs, file.plan.args, strict=True))
        if item.kind == "user"
        for axis, (shape, stride) in enumerate(zip(spec.shape, spec.strides, strict=True))
        if computed(shape) or computed(stride)
    ]


def _evaluator(file: ProgramFile) -> Callable[[Expr, Mapping[str, int]], int]:
    """Evaluates the expressions of results; they were checked when the file was read."""
    texts = [
        e
        for r in file.returns
        for e in ((*r.shape, *r.strides, r.offset) if isinstance(r, Passed) else ())
        + ((r.value,) if isinstance(r, Counted) else ())
        if isinstance(e, str)
    ]
    codes = {text: compile(text, "<result>", "eval") for text in texts}

    def value(expr: Expr, bound: Mapping[str, int]) -> int:
        if isinstance(expr, int):
            return expr
        names: dict[str, Any] = {"__builtins__": {}, "Max": max, "Min": min}
        try:
            return int(eval(codes[expr], names, {**bound}))
        except ZeroDivisionError as error:
            raise errors.ARTIFACT_DAMAGED.error("size", found=f"{expr} of {dict(bound)}") from error

    return value


__all__ = ["Call"]
