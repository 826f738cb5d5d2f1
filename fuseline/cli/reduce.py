"""Shrink a func that shows what is wrong, to a few lines that still show it.

Passes, results and ops are left out, parts of the func become arguments, sizes and attributes
shrink; every step is checked. The file has the smallest func so far at any time.

With a command as the check, {} in it stands for the file of each candidate.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fuseline.cli import user_passes
from fuseline.cli.arguments import add_json, add_options, positive
from fuseline.cli.cases import add_check, checks, is_case, replay_of
from fuseline.errors import BAD_ARGUMENT

if TYPE_CHECKING:
    from fuseline.cli.output import Output
    from fuseline.debug.case import Case
    from fuseline.debug.trial import Verdict
    from fuseline.replay import Replay

EXAMPLE = """\
  fuseline reduce wrong.fl -o small.fl
  fuseline reduce wrong.fl --load my_passes.py -p canonicalize,my-pass --max-seconds 60
  fuseline reduce wrong.fl --check 'python still_wrong.py {}'"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("file", metavar="FILE", help="a reproducer, or another file of IR")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="where the result goes (default: FILE.reduced.fl)"
    )
    parser.add_argument(
        "--max-seconds", type=positive, help="stop after so long (default: when nothing is left)"
    )
    add_check(parser)
    user_passes.add_arguments(parser)
    add_options(parser)
    add_json(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Shrink it, and print what is left; 1 if it does not fail in the first place.

    Raises:
        UsageError: FL0103, for what is no file of IR.
    """
    if not is_case(arguments.file):
        expected = "a reproducer, or another file of IR: `fuseline repro MODEL` writes them"
        raise BAD_ARGUMENT.error("FILE", found=arguments.file, expected=expected)
    path = Path(arguments.file)
    target = Path(arguments.output or path.with_suffix(".reduced.fl"))
    made = replay_of(arguments, arguments.file)
    from fuseline.debug.reduce import Reduction
    from fuseline.replay import Replay

    without = ""
    if made.case.weights is not None:  # arguments come and go; those that are seeded can do so
        without = ", without its weights, which are not kept"
        made = Replay.of(replace(made.case, weights=None), made.config)

    before = len(made.case.func)
    with out.step("reducing") as show, tempfile.TemporaryDirectory() as folder:

        def better(case: Case) -> None:
            case.write(target)
            show(f"{len(case.func)} of {before} ops")

        check = _Candidates(made, arguments.check, Path(folder) / "candidate.fl")
        reduction = Reduction(made.case, made.passes, check, better, arguments.max_seconds)
        failed = reduction.run()
    case, said = reduction.case, reduction.first.said
    data = {
        "failed": failed,
        "file": str(target) if failed else None,
        "ops_before": before,
        "ops": len(case.func),
        "pipeline": ",".join(map(str, reduction.passes)),
        "tried": reduction.tried,
        "said": said,
    }
    if not failed:
        out.result(data, f"it does not fail{without}: {said}")
        return 1
    ops = "1 op" if len(case.func) == 1 else f"{len(case.func)} ops"
    title = f"{target}: {ops} of {before}, after {reduction.tried} tries"
    out.result(data, f"{title}\n\n{case.to_text().rstrip()}")
    return 0


class _Candidates:
    """Checks one candidate after the other as the first one is checked.

    It is told once, of the first, whether the passes or the kernels are what fails.
    """

    def __init__(self, made: Replay, check: str | None, file: Path) -> None:
        self.made, self.check, self.file = made, check, file
        self.kernels: bool | None = None

    def __call__(self, case: Case) -> Verdict:
        from fuseline.debug.trial import Trial, Verdict
        from fuseline.replay import Replay

        try:
            arguments = self.made.arguments if self.kernels is None else case.arguments()
        except (ValueError, RuntimeError, IndexError) as error:
            return Verdict(False, f"it has no arguments: {error}")
        candidate = Replay(case, self.made.config, arguments)
        if self.check not in (None, "numbers", "raises"):
            case.write(self.file)
        of_passes, of_kernels = checks(self.check, candidate, self.file)
        if self.kernels is not True or of_kernels is None:
            verdict = of_passes(Trial())
            if verdict.bad or of_kernels is None or self.kernels is False:
                self.kernels = False if self.kernels is None else self.kernels
                return verdict
        verdict = of_kernels(Trial())
        self.kernels = True if self.kernels is None else self.kernels
        return verdict
