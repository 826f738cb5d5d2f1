"""List the sites of a model: every place that looks like a known pattern, and what became of it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from fuseline.cli import costs
from fuseline.cli.arguments import (
    OF_COMPILING,
    add_check_numerics,
    add_html,
    add_inputs,
    add_json,
    add_model,
    add_remarks,
    add_require,
    options,
    refuse,
)
from fuseline.cli.samples import add_to_page
from fuseline.cli.zoo import command as zoo
from fuseline.config import Config
from fuseline.errors import BAD_ARGUMENT

if TYPE_CHECKING:
    from fuseline.cli.compiling import Compiled
    from fuseline.cli.models import LoadedModel
    from fuseline.cli.output import Output, Show
    from fuseline.report import Report

EXAMPLE = """\
  fuseline explain smollm2
  fuseline explain my_module:make_model --missed --json
  fuseline explain smollm2 --remarks 'fuse-.*' --remarks-missed --remarks-output remarks.yaml
  fuseline explain my_module:make_model --require qk_norm --require moe=4
  fuseline explain smollm2 --length 9 --check-numerics
  fuseline explain my_module:make_model --kernels --set target=sm_90
  fuseline explain smollm2 --cost --length 512
  fuseline explain smollm2 --html smollm2.html
  fuseline explain --zoo --only 'qwen.*' --dtype bfloat16"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model(parser, needed=False)
    add_inputs(parser)
    parser.add_argument(
        "--missed", action="store_true", help="list only the sites that were not fused"
    )
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="only the kernels that were built: registers, shared memory, spills, widest access",
    )
    costs.add_arguments(parser)
    parser.add_argument(
        "--full", action="store_true", help="kernels, passes and numbers as well, and nothing cut"
    )
    add_remarks(parser)
    add_require(parser)
    add_check_numerics(parser)
    add_html(parser)
    add_json(parser)
    zoo.add_arguments(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Compile, print the report, and give 1 if ``--check-numerics`` found kernels that differ.

    Raises:
        UsageError: FL0103, for a model and ``--zoo`` together, or neither.
    """
    if arguments.zoo == (arguments.model is not None):
        found = f"{arguments.model} and --zoo" if arguments.zoo else "neither"
        raise BAD_ARGUMENT.error("MODEL", found=found, expected="MODEL or --zoo")
    if arguments.zoo:
        refuse(arguments, OF_COMPILING, "--zoo", "a model")
        return zoo.run(arguments, out)
    costs.check(arguments)
    config = Config.of(options(arguments))
    if arguments.cost:
        config = config.replace(cost=True)
    from fuseline.cli import compiling

    loaded = compiling.loaded(arguments, config, out)
    with compiling.step(out) as show:
        compiled, report = explained(loaded, config, show)
    add_to_page(config, loaded, compiled, out)
    if arguments.cost:
        costs.run(arguments, loaded, compiled, report, out)
        return 0
    whole = report.text(missed=arguments.missed, full=True)
    text = whole if arguments.full else _short(arguments, report)
    missed = tuple(s for s in report.sites if s.status == "missed")
    shown = replace(report, sites=missed) if arguments.missed else report
    out.result(shown.to_dict(), text)
    return 1 if report.numbers_differ else 0


def _short(arguments: argparse.Namespace, report: Report) -> str:
    """The sites, or the kernels; with ``--missed`` the counts of all sites, and a list of some."""
    if arguments.kernels:
        table = report.kernels_table() or "no kernel was built"
    else:
        table = report.sites_table(missed=arguments.missed) or "no site was found"
        if arguments.missed and report.sites and all(s.status != "missed" for s in report.sites):
            table = f"{table}\nnone of {len(report.sites)} sites was missed"
    parts = [report.summary(), table, report.numerics_table()]
    return "\n\n".join(part for part in parts if part)


def explained(loaded: LoadedModel, config: Config, show: Show) -> tuple[Compiled, Report]:
    """Compile a model, run it once on its inputs, and return it with its report.

    It is compiled anew: a program from the cache may have been made for other inputs.
    """
    import torch

    from fuseline.cli.compiling import compile_program

    compiled = compile_program(loaded.model, config.replace(reuse=False), show)
    with torch.no_grad():
        try:
            compiled(*loaded.args, **loaded.kwargs)
        except Exception:
            loaded.run()  # where the model itself fails, that is what to say
            raise
    return compiled, compiled.report()
