"""Show what an artifact holds, check it, or tell what changed between two. Nothing of it is run."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fuseline.cli.arguments import add_json
from fuseline.cli.artifact_text import changes, described
from fuseline.cli.files import kind_of, refusal
from fuseline.cli.output import Output, printable
from fuseline.errors import BAD_ARGUMENT

if TYPE_CHECKING:
    from fuseline.artifact.inspecting import Opened

EXAMPLE = """\
  fuseline inspect model.fuse
  fuseline inspect model.fuse --verify --verify-key author.pem
  fuseline inspect model.fuse --at B=1 --at S=2048 --json
  fuseline inspect model.fuse --diff before.fuse"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("file", metavar="FILE", help="a .fuse file")
    parser.add_argument(
        "--verify", action="store_true", help="read every byte, and compare all digests"
    )
    parser.add_argument(
        "--verify-key",
        metavar="KEY",
        type=Path,
        help="a PEM file with a public key: refuse what it has not signed; implies --verify",
    )
    parser.add_argument(
        "--diff",
        metavar="OTHER",
        help="tell what is another in FILE than in OTHER, and end with 1 if anything is",
    )
    parser.add_argument(
        "--at",
        metavar="NAME=SIZE",
        action="append",
        default=[],
        help="a size that memory is computed for (default: the greatest); may be repeated",
    )
    parser.add_argument("--full", action="store_true", help="every site, choice and member")
    add_json(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Print what is asked for; 1 if a digest is wrong, or two files differ.

    Raises:
        ArtifactError: FL1101 to FL1104, FL1111, FL1112.
        LoadError: FL0810, for a file of another kind.
        UsageError: FL0103, for a size that is none, or that no program has.
    """
    from fuseline.artifact.inspecting import Opened

    sizes = _sizes(arguments.at)
    for file in (arguments.file, arguments.diff):
        kind = kind_of(Path(file)) if file and Path(file).is_file() else None
        if kind not in (None, "fuse"):
            raise refusal(file, kind)
    opened = Opened.of(Path(arguments.file))
    if arguments.verify_key is not None:
        from fuseline.artifact.signing import verified

        with out.step("checking signature and digests"):
            verified(opened.archive, arguments.verify_key)
    elif arguments.verify:
        with out.step("checking digests"):
            wrong = opened.wrong()
        if wrong:
            data = {"wrong": [error.diagnostic.to_dict() for error in wrong]}
            out.result(data, printable("\n".join(map(str, wrong))))
            return 1
    if arguments.diff is not None:
        return _diff(Opened.of(Path(arguments.diff)), opened, out)
    _known(sizes, opened)
    facts = opened.facts(sizes)
    facts["verified"] = arguments.verify or arguments.verify_key is not None
    facts["signed_by_key"] = arguments.verify_key is not None
    out.result(facts, printable(described(facts, full=arguments.full)))
    return 0


def _sizes(given: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in given:
        name, _, value = text.partition("=")
        if not name or not (value.isascii() and value.isdigit()) or len(value) > 12:
            raise BAD_ARGUMENT.error("--at", found=repr(text), expected="NAME=SIZE")
        if name in found:
            raise BAD_ARGUMENT.error("--at", found=f"{name} twice", expected="one size of each")
        found[name] = int(value)
    return found


def _known(sizes: dict[str, int], opened: Opened) -> None:
    plans = [program.plan for program in opened.programs.values()]
    known = list(dict.fromkeys(name for plan in plans for name in plan.symbols))
    for name, value in sizes.items():
        if name not in known:
            expected = f"one of {', '.join(known)}" if known else "none: all sizes are fixed"
            raise BAD_ARGUMENT.error("--at", found=repr(name), expected=expected)
        for plan in plans:
            least, most = plan.ranges.get(name, (0, None))
            if name in plan.symbols and not least <= value <= (value if most is None else most):
                expected = f"{least} to {most}" if most is not None else f"{least} or more"
                raise BAD_ARGUMENT.error("--at", found=f"{name}={value}", expected=expected)


def _diff(before: Opened, now: Opened, out: Output) -> int:
    from fuseline.artifact.differences import differences

    with out.step("comparing"):
        found = differences(before, now)
    out.result(found, printable(changes(found)))
    return 0 if found["same"] else 1
