"""Find the one rewrite, pass or kernel that breaks the numbers of a model, or makes it fail.

A compilation can stop after any number of rewrites; the first with which the check fails is found
by binary search, in at most 2 + log2(rewrites) compilations. Then it is tried without the earlier
ones, to tell whether it breaks things alone, or only together with another one.

With a command as the check, the command is run for each compilation, and sees in its environment
which: FUSELINE_FUSE_LIMIT, FUSELINE_ONLY_REWRITES, FUSELINE_DISABLE, FUSELINE_PLAIN_KERNELS. It can
be any program that uses fuseline; {} in it stands for the file of the reproducer.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuseline.cli import user_passes
from fuseline.cli.arguments import add_inputs, add_json, add_model
from fuseline.cli.cases import add_check, checks, is_case, replay_of, replays_of_model

if TYPE_CHECKING:
    from fuseline.cli.output import Output
    from fuseline.debug.bisect import Found
    from fuseline.replay import Replay

EXAMPLE = """\
  fuseline bisect my_module:make_model
  fuseline bisect before-fuse-moe.fl
  fuseline bisect wrong.fl --load my_passes.py -p canonicalize,my-pass
  fuseline bisect my_module:make_model --check 'python evaluate.py --at-least 0.71'"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model(parser, first="a reproducer or another file of IR; ")
    add_inputs(parser)
    add_check(parser)
    user_passes.add_arguments(parser)
    add_json(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Search, and print what was found; 1 if nothing fails, or nothing can be told."""
    if is_case(arguments.model):
        file = Path(arguments.model)
        found = search(replay_of(arguments, arguments.model), arguments.check, file, out)
    else:
        found = _in_model(arguments, out)
    from fuseline.cli.found import described

    data, text = described(found)
    out.result(data, text)
    return 0 if data["found"] != "nothing" else 1


def _in_model(arguments: argparse.Namespace, out: Output) -> Found:
    """The first graph of a model in which something is found; a command sees all at once."""
    from fuseline.debug.bisect import FoundNothing, FoundPass

    graphs, loaded, result = replays_of_model(arguments, out)
    if arguments.check not in (None, "numbers", "raises"):
        longest = max(graphs, key=lambda each: len(each.passes) and _rewrites(each))
        return search(longest, arguments.check, None, out)
    count = 0
    for number, each in enumerate(graphs):
        out.note(f"graph {number} of {len(graphs)}: {len(each.case.func)} ops")
        found = search(each, arguments.check, None, out)
        count += found.compilations
        if not isinstance(found, FoundNothing):
            return found
    if arguments.check != "raises" and (said := _wrong_capture(loaded, result, graphs[0])):
        return FoundPass(0, "", said, count)
    return FoundNothing("no graph of it does", False, count)


def _rewrites(made: Replay) -> int:
    from fuseline.debug.trial import Trial

    return len(made.record(Trial()).applied)


def _wrong_capture(loaded: Any, result: Any, made: Replay) -> str:
    """What is wrong with what the captured graphs give, op by op; empty if nothing is."""
    import torch

    from fuseline.debug.oracle import oracle, relative_error, tensors

    with torch.no_grad():
        expected = loaded.run()
    exact = oracle(loaded.model, *loaded.args, **loaded.kwargs)
    own, error = relative_error(expected, exact), relative_error(result, exact)
    kinds = {t.dtype for t in tensors(expected) if t.is_floating_point()}
    unit = max((torch.finfo(kind).eps for kind in kinds), default=0.0)
    allowed = made.config.tolerance * own + unit
    return (
        "" if error <= allowed else f"error {error:.3g}, outside {allowed:.3g}; eager's {own:.3g}"
    )


def search(made: Replay, check: str | None, file: Path | None, out: Output) -> Found:
    """Bisect one func."""
    from fuseline.debug.bisect import Bisection

    of_passes, of_kernels = checks(check, made, file)
    with out.step("bisecting") as show:

        def told(line: str) -> None:
            out.note(line)
            show(line)

        return Bisection(
            of_passes,
            made.record,
            made.passes,
            told,
            of_kernels,
            made.kernels if of_kernels is None else tuple,
        ).run()
