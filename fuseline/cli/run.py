"""Run a model compiled and eager; compare the numbers with float64, and the times.

The numbers differ, and the exit code is 1, where the compiled model is further from the float64
result than the option `tolerance` times as far as eager is, plus one unit in the last place. A
.fuse file has no eager form: its programs are run on seeded inputs, and timed. That of an ONNX
model is its operators, run one by one in torch.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuseline.cli.arguments import (
    add_check_numerics,
    add_file_checks,
    add_html,
    add_inputs,
    add_json,
    add_model,
    add_remarks,
    add_require,
    count,
    options,
    refuse,
)
from fuseline.cli.files import kind_of
from fuseline.cli.output import Output, columns
from fuseline.cli.samples import add_to_page
from fuseline.cli.timing import in_turns, timed
from fuseline.config import Config

if TYPE_CHECKING:
    from fuseline.cli.models import LoadedModel
    from fuseline.report import Report

EXAMPLE = """\
  fuseline run smollm2 --length 64
  fuseline run my_module:make_model --set verify=1 --json
  fuseline run model.onnx --batch 4
  fuseline run model.fuse --batch 4 --length 128"""


@dataclass(frozen=True)
class Comparison:
    """What `run` finds out.

    Attributes:
        compile_seconds: the first call of the compiled model, capture and build included.
        compiled_seconds: median of the later calls.
        eager_seconds: the same of the model itself, measured in turns with the compiled one.
        compiled_error: relative to the float64 oracle.
        eager_error: the same of the model itself.
        allowed_error: the most that `compiled_error` may be.
    """

    compile_seconds: float
    compiled_seconds: float
    eager_seconds: float
    compiled_error: float
    eager_error: float
    allowed_error: float

    @property
    def same(self) -> bool:
        """Whether the numbers rule holds."""
        return self.compiled_error <= self.allowed_error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model(parser)
    add_inputs(parser)
    parser.add_argument("--runs", type=count, default=10, help="timed calls of each (default: 10)")
    add_file_checks(parser)
    add_remarks(parser)
    add_require(parser)
    add_check_numerics(parser)
    add_html(parser)
    add_json(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Compile, run, compare, and print; 1 if the numbers differ."""
    if kind_of(Path(arguments.model)) == "fuse":
        from fuseline.cli import artifacts

        refuse(arguments, ("--check-numerics",), arguments.model, "a model: its passes have run")
        return artifacts.run(arguments, out)
    refuse(arguments, ("--verify", "--verify-key"), arguments.model, "a .fuse file")
    config = Config.of(options(arguments))
    from fuseline.cli import compiling

    loaded = compiling.loaded(arguments, config, out)
    comparison, report = compare(loaded, config, arguments.runs, out)
    data = {**asdict(comparison), "same": comparison.same, "report": report.to_dict()}
    out.result(data, _text(comparison, report))
    return 0 if comparison.same and not report.numbers_differ else 1


def compare(
    loaded: LoadedModel, config: Config, runs: int, out: Output
) -> tuple[Comparison, Report]:
    """Run the model, its compiled form and the float64 oracle on the same inputs."""
    import torch

    from fuseline.cli import compiling
    from fuseline.debug.oracle import oracle, relative_error

    with torch.no_grad():
        with out.step("running it eager, and in float64"):
            expected = loaded.run()
            exact = oracle(loaded.model, *loaded.args, **loaded.kwargs)
        with compiling.step(out) as show:
            started = time.perf_counter()  # an ONNX model is compiled before its first call
            compiled = compiling.compile_program(loaded.model, config, show)
            found, _ = timed(compiled, loaded)
            compile_seconds = time.perf_counter() - started
        with out.step("timing"):
            ours, eager = in_turns(compiled, loaded.model, loaded, runs)
        add_to_page(config, loaded, compiled, out, runs)
    eager_error = relative_error(expected, exact)
    comparison = Comparison(
        compile_seconds=compile_seconds,
        compiled_seconds=ours,
        eager_seconds=eager,
        compiled_error=relative_error(found, exact),
        eager_error=eager_error,
        allowed_error=config.tolerance * eager_error + _unit(expected),
    )
    return comparison, compiled.report()


def _unit(expected: Any) -> float:
    """One unit in the last place of the widest of the outputs' rounding."""
    import torch

    from fuseline.debug.oracle import tensors

    kinds = {tensor.dtype for tensor in tensors(expected) if tensor.is_floating_point()}
    return max((torch.finfo(kind).eps for kind in kinds), default=0.0)


def _text(comparison: Comparison, report: Report) -> str:
    c = comparison
    verdict = "within" if c.same else "OUTSIDE"
    speed = c.eager_seconds / c.compiled_seconds
    rows = [
        ["compile", f"{c.compile_seconds:.2f} s"],
        ["time", f"{c.compiled_seconds * 1e3:.2f} ms, eager {c.eager_seconds * 1e3:.2f} ms"],
        ["speed", f"{speed:.2f} times eager's"],
        ["error", f"{c.compiled_error:.3g}, eager's {c.eager_error:.3g}, both against float64"],
        ["numbers", f"{verdict} the allowed {c.allowed_error:.3g}"],
    ]
    tables = (report.sites_table(), report.numerics_table())
    parts = (columns(rows, indent=""), report.summary(), *tables)
    return "\n\n".join(part for part in parts if part)
