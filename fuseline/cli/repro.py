"""Write the graphs of a model down as reproducers, or replay a reproducer.

For a model: one file of text for each graph, with its IR, the pipeline, a seed, sizes, options and
versions, and without weights unless they are asked for. For a reproducer: makes arguments of the
types and the seed, runs the pipeline, and compares what comes out with what went in, both by the
references of the ops and by kernels for the CPU; 1 if the numbers differ, or anything raises.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuseline.cli import user_passes
from fuseline.cli.arguments import add_inputs, add_json, add_model, refuse, seed
from fuseline.cli.cases import add_check, checks, is_case, replay_of, replays_of_model
from fuseline.cli.output import columns
from fuseline.errors import BAD_ARGUMENT

if TYPE_CHECKING:
    from fuseline.cli.output import Output
    from fuseline.debug.case import Case
    from fuseline.replay import Replay

EXAMPLE = """\
  fuseline repro my_module:make_model -o model.fl
  fuseline repro my_module:make_model -o model.fl --graph 1 --weights
  fuseline repro model.fl"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model(parser, first="a reproducer or another file of IR, to replay; or ")
    add_inputs(parser)
    parser.add_argument(
        "-o", "--output", metavar="FILE.fl", help="where the reproducer of a model goes"
    )
    parser.add_argument("--graph", type=int, metavar="N", help="only this graph of the model")
    parser.add_argument(
        "--weights",
        action="store_true",
        help="with weights and inputs, in a file of safetensors beside it",
    )
    parser.add_argument("--seed", type=seed, help="of the arguments (default: 0)")
    add_check(parser)
    user_passes.add_arguments(parser)
    add_json(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Write or replay.

    Raises:
        UsageError: FL0103, for arguments of the one with the other.
    """
    if is_case(arguments.model):
        refuse(arguments, ("--output", "--weights", "--graph"), "a reproducer", "a model")
        return _replay(arguments, out)
    refuse(arguments, ("--check",), "a model", "a reproducer")
    return _write(arguments, out)


# -- writing


def _write(arguments: argparse.Namespace, out: Output) -> int:
    if arguments.output is None:
        raise BAD_ARGUMENT.error("--output", found="none with a model", expected="-o FILE.fl")
    graphs, _, _ = replays_of_model(arguments, out)
    numbers = range(len(graphs)) if arguments.graph is None else [arguments.graph]
    if arguments.graph is not None and not 0 <= arguments.graph < len(graphs):
        found = f"{arguments.graph} of {len(graphs)} graphs"
        raise BAD_ARGUMENT.error("--graph", found=found, expected=f"0 to {len(graphs) - 1}")
    target, files = Path(arguments.output), list[dict[str, Any]]()
    for number in numbers:
        several = len(numbers) > 1
        path = target.with_stem(f"{target.stem}-{number}") if several else target
        made = graphs[number]
        case = made.case if arguments.seed is None else replace(made.case, seed=arguments.seed)
        if arguments.weights:
            case = case.with_weights(made.arguments, path)
        case.write(path)
        item = {"file": str(path), "graph": number, "ops": len(case.func)}
        files.append(item | ({"weights": case.weights} if case.weights else {}))
    rows = [[f["file"], f"graph {f['graph']}", f"{f['ops']} ops"] for f in files]
    out.result({"files": files}, columns(rows, indent=""))
    return 0


# -- replaying


def _replay(arguments: argparse.Namespace, out: Output) -> int:
    made = replay_of(arguments, arguments.model)
    if arguments.seed is not None:
        from fuseline.replay import Replay

        case = replace(made.case, seed=arguments.seed)
        made = Replay.of(case, made.config, Path(arguments.model).parent)
    with out.step("replaying"):
        said = _verdicts(made, arguments.check, Path(arguments.model))
    differ = _other_versions(made.case)
    failed = any(verdict["bad"] is not False for verdict in said.values())
    data: dict[str, Any] = {"failed": failed, "seen_with": differ, **said}
    rows = [[name, "bad" if v["bad"] else "good", str(v["said"])] for name, v in said.items()]
    if made.case.failed:
        rows.insert(0, ["reported", "", made.case.failed])
    rows += [["seen with", name, text] for name, text in differ.items()]
    out.result(data, columns(rows, indent=""))
    return 1 if failed else 0


def _verdicts(made: Replay, check: str | None, file: Path) -> dict[str, dict[str, Any]]:
    """What the check says of the passes, and if they are right of the kernels as well."""
    from fuseline.debug.trial import Trial

    of_passes, of_kernels = checks(check, made, file)
    verdict = of_passes(Trial())
    name = "command" if of_kernels is None else "passes"
    found: dict[str, dict[str, Any]] = {name: {"bad": verdict.bad, "said": verdict.said}}
    if of_kernels is not None and not verdict.bad:
        verdict = of_kernels(Trial())
        found["kernels"] = {"bad": verdict.bad, "said": verdict.said}
        found["kernels"]["count"] = len(verdict.kernels)
    return found


def _other_versions(case: Case) -> dict[str, str]:
    """What it was seen with, where that is not what is here."""
    from fuseline.debug.case import versions

    here = versions()
    return {
        name: f"{version}, here {here[name]}"
        for name, version in case.versions.items()
        if here.get(name, version) != version
    }
