"""What `bisect`, `reduce` and `repro` share: a model or a reproducer, and a check."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuseline.cli import user_passes
from fuseline.cli.arguments import options
from fuseline.config import Config
from fuseline.errors import BAD_ARGUMENT

if TYPE_CHECKING:
    from fuseline.cli.models import LoadedModel
    from fuseline.cli.output import Output
    from fuseline.debug.trial import Check
    from fuseline.replay import Replay

HEAD, FUNC = "// fuseline reproducer", "func @"

CHECK_HELP = """\
what fails: numbers (outside of what the option tolerance allows, or anything raises), raises
(anything raises), or else a shell command (exit status 0: good; 125: cannot tell; others: bad).
Default: raises for the reproducer of a pass that raised, else numbers"""


def add_check(parser: argparse.ArgumentParser) -> None:
    """``--check``."""
    parser.add_argument("--check", metavar="CHECK", help=CHECK_HELP)


def is_case(name: str) -> bool:
    """Whether a name is that of a file of IR text."""
    path = Path(name)
    if path.suffix == ".fl":
        return True
    if not path.is_file():
        return False
    try:
        with path.open(errors="strict") as file:
            return file.read(len(HEAD)).startswith((HEAD, FUNC))
    except UnicodeDecodeError:
        return False


def replay_of(arguments: argparse.Namespace, name: str) -> Replay:
    """The reproducer in a file, under the options that it and the command line give.

    Raises:
        LoadError: FL0830, for a file that is none.
        UsageError: FL0103 and the like, for options.

    """
    from fuseline.debug.case import Case, given_options
    from fuseline.passes.pipeline_text import check_chosen
    from fuseline.replay import Replay

    user_passes.load(arguments.load)
    path = Path(name)
    case = Case.read(path)
    if arguments.pipeline is not None:
        case = replace(case, pipeline=arguments.pipeline)
    config = Config.of({**case.options, **options(arguments)})
    case = replace(case, options=given_options(config))
    made = Replay.of(case, config, path.parent)
    _ = made.passes  # a pass that is not known is met here
    check_chosen(config)
    return made


def replays_of_model(
    arguments: argparse.Namespace, out: Output
) -> tuple[list[Replay], LoadedModel, Any]:
    """A model's graphs with the arguments of its first call, the model, and what it gives op by op.

    Raises:
        LoadError: for a model that cannot be read.
        UsageError: FL0103, for a model of which nothing is captured, and for options.

    """
    user_passes.load(arguments.load)
    config = Config.of(options(arguments))
    from fuseline.cli import compiling

    loaded = compiling.loaded(arguments, config, out)
    with out.step("capturing"):
        from fuseline._torch import tracing_errors_to
        from fuseline.captures import capture
        from fuseline.passes.pipeline_text import check_chosen
        from fuseline.replay import Replay

        check_chosen(config)
        with tracing_errors_to(compiling.logger):
            try:
                graphs, result = capture(loaded.model, loaded.args, loaded.kwargs, config)
            except Exception:
                loaded.run()  # where the model itself fails, that is what to say
                raise
    if not graphs:
        raise BAD_ARGUMENT.error("MODEL", found=f"{arguments.model}, of which nothing is captured")
    found: list[Replay] = []
    for graph in graphs:
        case = graph.case(config, arguments.pipeline)
        given = case.arguments() if graph.arguments is None else graph.arguments
        found.append(Replay(case, config, given))
        _ = found[-1].passes
    return found, loaded, result


def checks(check: str | None, made: Replay, file: Path | None) -> tuple[Check, Check | None]:
    """The check that is asked for: of the passes, and one of the kernels where that is another."""
    from fuseline.replay import Command, Numbers

    kind = check or ("raises" if made.case.failed else "numbers")
    if kind not in ("numbers", "raises"):
        return Command(made, kind, file), None

    raising = kind == "raises"
    return Numbers(made, "passes", raising), Numbers(made, "kernels", raising)


__all__ = ["add_check", "checks", "is_case", "replay_of", "replays_of_model"]
