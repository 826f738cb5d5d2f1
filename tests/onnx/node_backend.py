"""ONNX's own backend test, over the node cases: each by the references, or compiled for the CPU.

`python tests/onnx/node_backend.py` runs all of them both ways and writes `known_failures.txt`.
"""

from __future__ import annotations

import re
import sys
import unittest
import warnings
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx.backend.base import Backend, BackendRep
from torch import Tensor

from fuseline import errors
from fuseline.config import Config
from fuseline.frontend.onnx import NeedsInput, OnnxProgram, import_onnx
from fuseline.frontend.onnx.data import from_numpy
from fuseline.onnx_run import compile_onnx

LIST = Path(__file__).with_name("known_failures.txt")
HEADER = """\
# The node cases of onnx.backend.test that do not pass, and why; written by
#     python tests/onnx/node_backend.py
# Each line: the case, where it fails, and the reason. It fails by the references and compiled
# ("import"), or only compiled ("cpu"), or only by the references ("reference"). A case that is
# listed and passes there fails the test.
"""

WHY = {
    r"^test_bernoulli": "random: torch's generator is not the one of the standard's reference",
    r"^test_attention_4d_causal_fp16_expanded": "float16: products are summed in float32 and "
    "rounded once, the expected values were summed in float16; two elements differ by one unit",
}
"""What the numbers of a case differ for, by its name."""


def _to_torch(given: Any) -> Tensor:
    if not isinstance(given, (np.ndarray, np.generic)):
        raise TypeError(f"an input of type {type(given).__name__}")
    array: Any = np.asarray(cast("Any", given))
    if array.dtype == ml_dtypes.bfloat16:
        return from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return from_numpy(array)


def _to_numpy(tensor: Tensor) -> Any:
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


class Prepared(BackendRep):
    """A model that is imported when its inputs are there: shapes may be among them."""

    def __init__(self, model: onnx.ModelProto, compiled: bool) -> None:
        self.model = model
        self.compiled = compiled

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        program = self._imported(inputs)
        feed = dict(zip(program.inputs, map(_to_torch, inputs), strict=False))
        if self.compiled:
            found = compile_onnx(program, NodeBackend.config)(feed)
        else:
            found = program.run(feed)
        return tuple(_to_numpy(found[name]) for name in program.outputs)

    def _imported(self, inputs: Sequence[Any]) -> OnnxProgram:
        """Import, with those inputs fixed that the importer says are shapes."""
        weights = {each.name for each in self.model.graph.initializer}
        names = [each.name for each in self.model.graph.input if each.name not in weights]
        values: dict[str, Tensor] = {}
        while True:
            try:
                return import_onnx(self.model, values)
            except NeedsInput as error:
                new = [n for n in error.inputs if n in names and n not in values]
                if not new:
                    raise
                values |= {n: _to_torch(inputs[names.index(n)]) for n in new}
                NodeBackend.fixed += 1


class NodeBackend(Backend):
    """What `onnx.backend.test` calls."""

    compiled: ClassVar[bool] = False
    config: ClassVar[Config | None] = None
    fixed: ClassVar[int] = 0

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> Prepared:
        return Prepared(model, cls.compiled)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return device == "CPU"


@contextmanager
def _quiet() -> Generator[None]:
    """Without the warnings of numpy where ONNX makes its cases."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load() -> dict[str, Any]:
    """The test methods of all node cases, by name."""
    from onnx.backend.test import BackendTest

    with _quiet():
        found = BackendTest(cast("Any", NodeBackend), __name__).test_cases
    kind = found["OnnxBackendNodeModelTest"]
    return {
        name.removesuffix("_cpu"): kind(name)
        for name in dir(kind)
        if name.startswith("test_") and name.endswith("_cpu")
    }


def run(case: Any, *, compiled: bool, config: Config | None = None) -> str:
    """Run one case: why it fails, empty where it passes."""
    NodeBackend.compiled, NodeBackend.config = compiled, config
    cast("Any", torch).manual_seed(0)  # else a random case passes now and then
    with _quiet():
        try:
            getattr(case, case._testMethodName)()
        except unittest.SkipTest as skipped:
            return f"skipped: {skipped}"
        except errors.FuselineError as error:
            return _reason(str(error))
        except AssertionError as error:
            name = case._testMethodName
            known = [why for pattern, why in WHY.items() if re.search(pattern, name)]
            return known[0] if known else f"differs: {_numbers(str(error))}"
        except Exception as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""


def _reason(text: str) -> str:
    return re.sub(r" in node \(no name\)", "", text.partition(" Hint:")[0])


def _numbers(text: str) -> str:
    """The lines of numpy's message that say how far both are apart."""
    lines = [
        line.strip() for line in text.splitlines() if "difference" in line or "ismatch" in line
    ]
    return "; ".join(lines[:3]) or next(iter(text.strip().splitlines()), "other values")


def listed() -> dict[str, tuple[str, str]]:
    """The known failures: where and why, by case."""
    rows = [
        line.split("\t")
        for line in LIST.read_text().splitlines()
        if line and not line.startswith("#")
    ]
    return {name: (where, why) for name, where, why in rows}


def run_all(*, compiled: bool, config: Config | None = None) -> dict[str, str]:
    """The reason of each case that fails, empty for the others."""
    found: dict[str, str] = {}
    for number, (name, case) in enumerate(sorted(load().items())):
        found[name] = run(case, compiled=compiled, config=config)
        if compiled and number % 100 == 0:
            print(f"{number} cases compiled", file=sys.stderr, flush=True)
    return found


def write(by_reference: Mapping[str, str], compiled: Mapping[str, str]) -> None:
    """Write the list."""
    lines = [HEADER]
    for name in sorted(by_reference):
        one, other = by_reference[name], compiled[name]
        where = "import" if one and other else "reference" if one else "cpu"
        if one or other:
            lines.append(f"{name}\t{where}\t{one or other}\n")
    LIST.write_text("".join(lines))


def main() -> None:
    """Run all cases both ways and write the list."""
    references = run_all(compiled=False)
    print(f"{Counter(not w for w in references.values())[True]} of {len(references)} by references")
    compiled = run_all(compiled=True)
    print(f"{Counter(not w for w in compiled.values())[True]} of {len(compiled)} compiled")
    write(references, compiled)


if __name__ == "__main__":
    main()
