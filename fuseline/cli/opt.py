"""Read a func from IR text, such as a dump, run passes over it, and print the IR that they leave.

What is printed on the way (--print-ir-..., --print-changed, --timing) goes to standard error.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fuseline.cli import user_passes
from fuseline.cli.arguments import add_check_numerics, add_html, add_json, add_remarks, options
from fuseline.cli.output import Output, columns
from fuseline.config import Config, warn_of_unknown_variables
from fuseline.errors import BAD_ARGUMENT, NOT_IR, UNKNOWN_SIZE, PassError
from fuseline.report import Report

if TYPE_CHECKING:
    from fuseline.debug.numerics import Numerics
    from fuseline.debug.printing import Selection
    from fuseline.passes.manager import PassManager
    from fuseline.passes.record import Run
    from fuseline.passes.rewrite import Pass

EXAMPLE = """\
  fuseline opt dump/*-00/00-imported.fl
  fuseline opt -p 'canonicalize,cse,fuse-qk-norm{rope=false}' model.fl -o changed.fl
  fuseline opt model.fl --print-changed=diff --timing
  fuseline opt -p cse model.fl --print-ir-before --print-ir-after='fuse-.*'
  fuseline opt model.fl --remarks='fuse-.*' --check-numerics
  fuseline opt --load my_passes.py -p cse,my-pass model.fl
  fuseline opt --list-passes"""

STDIN = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        default=STDIN,
        help="IR text; - for standard input, which is the default",
    )
    parser.add_argument(
        "-p",
        "--pipeline",
        metavar="PASSES",
        help="passes in order, 'cse,fuse-qk-norm{rope=false}' (default: those of a compilation)",
    )
    parser.add_argument(
        "--gpu", action="store_true", help="without -p: those of a compilation for a GPU"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write the IR there")
    parser.add_argument(
        "--verify-each", action="store_true", help="check the IR after each pass, not at the end"
    )
    parser.add_argument(
        "--fuse-limit", metavar="N", type=_limit, help="apply at most N rewrites, in order"
    )
    parser.add_argument(
        "--no-locations", action="store_true", help="leave out the places in the model's source"
    )
    _add_printing(parser)
    user_passes.add_load(parser)
    add_remarks(parser, behind="FILE")
    add_check_numerics(parser)
    add_html(parser)
    parser.set_defaults(set=[])
    parser.add_argument(
        "--list-passes",
        action="store_true",
        help="print every pass with its options and what it does, and do nothing else",
    )
    add_json(parser)


def _add_printing(parser: argparse.ArgumentParser) -> None:
    for place in ("before", "after"):
        parser.add_argument(
            f"--print-ir-{place}",
            metavar="PASSES",
            nargs="?",
            const=".*",
            help=f"print the IR {place} each pass, or those named: =cse,'fuse-.*'",
        )
    parser.add_argument(
        "--print-ir-after-change",
        action="store_true",
        help="print the IR after passes that changed it, all or those of --print-ir-after",
    )
    parser.add_argument(
        "--print-changed", choices=("diff",), help="print a diff of each pass that changed the IR"
    )
    parser.add_argument("--timing", action="store_true", help="print how long each pass took")


def _limit(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Run the pipeline and print the IR, or list the passes.

    Raises:
        UsageError: FL0103, for a file that cannot be read or written, and for names of passes that
            are none of the pipeline's; FL0104 or FL0106, for a wrong pipeline, and for options
            of the environment that name passes that there are not.
        IRError: FL0301 or FL0302, for a text that is no valid func.
        PassError: FL0303, for a func with sizes that only the data tells.
        InternalError: a pass failed, or left invalid IR; the func before it is saved.

    """
    user_passes.load(arguments.load)
    if arguments.list_passes:
        _list(out)
        return 0
    from fuseline.debug import remarks
    from fuseline.debug.page.page import check_place
    from fuseline.ir.text import print_func
    from fuseline.passes.pipeline_text import check_chosen

    _refuse_files(arguments)
    config = Config.of(options(arguments))
    warn_of_unknown_variables()
    check_chosen(config)
    remarks.check(config)
    if config.html is not None:
        check_place(config.html)
    passes = _pipeline(arguments)
    manager = _manager(arguments, config, passes, out)
    text, name = _read(arguments.file)
    numerics: list[Numerics] | None = [] if arguments.check_numerics else None
    words = [word for file in arguments.load for word in ("--load", file)]
    try:
        record = optimised(manager, text, name, config, numerics, words)
    finally:
        done = manager.latest
        remarks.emit(remarks.of_run(done, done.func.name) if done else [], config)
    result = print_func(record.func, locations=not arguments.no_locations)
    if arguments.timing:
        out.note(timing_table(record))
    checked = tuple(each for found in numerics or () for each in found.records)
    if checked:
        out.note(Report(numerics=checked).numerics_table())
    to_file = arguments.output not in (None, STDIN)
    if to_file:
        _write(Path(arguments.output), result)
    data = {
        "ir": result,
        "passes": [asdict(each) for each in record.passes],
        "rewrites": [str(each) for each in record.applied],
        "numerics": [asdict(each) for each in checked],
    }
    if out.json:
        out.result(data, "")
    elif not to_file:
        out.stream(result)
    return 0


def optimised(
    manager: PassManager,
    text: str,
    name: str,
    config: Config,
    numerics: list[Numerics] | None = None,
    words: Sequence[str] = (),
) -> Run:
    """Run a pipeline over the func of a text.

    Args:
        manager: of the pipeline.
        text: of the func.
        name: of its file, for messages.
        config: says how far numbers may be off, and where a func is saved before a pass that
            fails.
        numerics: where given, each rewrite is checked on seeded arguments; what does so is added.
        words: what a command that replays a failure needs beside the pass.

    Raises:
        IRError: FL0301 or FL0302, for a text that is no valid func.
        PassError: FL0303, for a func with sizes that only the data tells; FL0402, for a pass of
            one's own that fails; FL0410, for a rewrite that breaks the numbers rule.
        InternalError: a pass failed, or left invalid IR.

    """
    from fuseline.debug.page.look import Look
    from fuseline.debug.read import read_func
    from fuseline.debug.reproducer import pass_failure
    from fuseline.ir.core import IRError
    from fuseline.ir.verify import verify
    from fuseline.passes.known_sizes import UnknownSizeError

    func = read_func(text, name)
    if numerics is not None:
        from fuseline.debug.numerics import Numerics
        from fuseline.debug.seeded import model_arguments

        numerics.append(Numerics(func, model_arguments(func), tolerance=config.tolerance))
        manager.observers = [*manager.observers, *numerics]
    look = Look.of(config, func.name, "", dict)
    look.start(func)
    manager.observers = [*manager.observers, *look.observers]
    try:
        with look.holding():
            record = manager.run(func)
            if not manager.check:
                try:
                    verify(func)
                except IRError:
                    manager.check, manager.observers = True, ()
                    manager.run(read_func(text, name))  # which names the pass
                    raise
    except UnknownSizeError as error:
        raise UNKNOWN_SIZE.error(
            where=name, found=str(error), hint="leave known-sizes out, with -p"
        ) from error
    except PassError:
        raise
    except Exception as error:
        raise pass_failure(
            manager, read_func(text, name), error, config.dump_dir, words=words
        ) from error
    look.passed(record)
    look.write()
    return record


def _pipeline(arguments: argparse.Namespace) -> list[Pass]:
    from fuseline.passes.pipeline import default_pipeline
    from fuseline.passes.pipeline_text import parse_pipeline

    if arguments.pipeline is None:
        return default_pipeline(on_gpu=arguments.gpu)
    if arguments.gpu:
        raise BAD_ARGUMENT.error("--gpu", found="it with -p", expected="one of the two")
    return parse_pipeline(arguments.pipeline)


def _manager(
    arguments: argparse.Namespace, config: Config, passes: Sequence[Pass], out: Output
) -> PassManager:
    from fuseline.debug.printing import Printer, nothing
    from fuseline.passes.manager import PassManager

    def chosen(flag: str, text: str | None) -> Selection:
        return nothing if text is None else selection(flag, text, passes)

    after = arguments.print_ir_after
    if after is None and arguments.print_ir_after_change:
        after = ".*"
    printer = Printer(
        lambda text: out.note(text.rstrip("\n")),
        before=chosen("--print-ir-before", arguments.print_ir_before),
        after=chosen("--print-ir-after", after),
        only_changed=arguments.print_ir_after_change,
        diff=arguments.print_changed == "diff",
        locations=not arguments.no_locations,
    )
    return PassManager(
        passes,
        check=arguments.verify_each,
        limit=config.fuse_limit if arguments.fuse_limit is None else arguments.fuse_limit,
        disable=config.disable,
        skip=config.skip_rewrites,
        only=config.only_rewrites,
        observers=[printer],
    )


def selection(flag: str, text: str, passes: Sequence[Pass]) -> Selection:
    """Those of a pipeline's passes that a text names: names or regular expressions, by commas.

    Raises:
        UsageError: FL0103, for a wrong expression, and for one that fits no pass.

    """
    chosen: set[str] = set()
    names = [each.name for each in passes]
    for item in text.split(","):
        try:
            found = {name for name in names if re.fullmatch(item, name)}
        except re.error as error:
            raise BAD_ARGUMENT.error(
                flag, found=f"{item!r} ({error})", expected="a regular expression"
            ) from None
        if not found:
            raise BAD_ARGUMENT.error(
                flag,
                found=repr(item),
                expected=f"passes of the pipeline, as in {flag}={names[0]}",
                hint=_ahead(flag),
            )
        chosen |= found
    return chosen.__contains__


def _refuse_files(arguments: argparse.Namespace) -> None:
    """Tell of a FILE that an option with a value of its own took for that."""
    for flag, text in (
        ("--remarks", arguments.remarks),
        ("--remarks-missed", arguments.remarks_missed),
    ):
        if text is not None and Path(text).is_file():
            expected = "a regular expression on the names of passes"
            raise BAD_ARGUMENT.error(flag, found=text, expected=expected, hint=_ahead(flag))


def _ahead(flag: str) -> str:
    return f"a FILE stands before the option, or behind {flag}='.*'"


def _read(file: str) -> tuple[str, str]:
    """The text of a file, and what it is called in messages."""
    name = "<stdin>" if file == STDIN else file
    try:
        data = sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes()
    except OSError as error:
        raise BAD_ARGUMENT.error(
            "FILE", found=f"{name} ({error.strerror})", expected="a file of IR text"
        ) from None
    try:
        return data.decode(), name
    except UnicodeDecodeError:
        raise NOT_IR.error(where=name, found="bytes that are no UTF-8") from None


def _write(path: Path, text: str) -> None:
    from fuseline.debug.files import replace_text

    try:
        replace_text(path, text)
    except OSError as error:
        raise BAD_ARGUMENT.error(
            "-o", found=f"{path} ({error.strerror})", expected="a file that can be written"
        ) from None


def timing_table(record: Run) -> str:
    """The passes of a run in order, with the seconds that each took and its share."""
    total = sum(each.seconds for each in record.passes)

    def row(number: str, name: str, seconds: float, note: str) -> list[str]:
        share = f"{100 * seconds / total:.1f} %" if total else ""
        return [number.rjust(5), f"{seconds:9.4f}", share.rjust(7), name, note]

    rows = [["   no.", "  seconds", "  share", "pass", ""]]
    for number, each in enumerate(record.passes, 1):
        rows.append(row(str(number), each.name, each.seconds, "changed" if each.changed else ""))
    return columns([*rows, row("", "all", total, "")], indent="")


def _list(out: Output) -> None:
    """Every pass in the order of a compilation, then those that none runs."""
    from fuseline.passes.pipeline import default_pipeline
    from fuseline.passes.rewrite import PASSES, Rewrite

    usual = [type(each) for each in default_pipeline(cache_latents=True, on_gpu=True)]
    kinds = list(dict.fromkeys([*usual, *(PASSES[name] for name in sorted(PASSES))]))
    found: list[dict[str, object]] = []
    parts: list[str] = []
    for kind in kinds:
        made: Callable[[], Pass] = kind
        options, doc = made().options, inspect.cleandoc(kind.__doc__ or "")
        found.append(
            {
                "name": kind.name,
                "options": {name.replace("_", "-"): value for name, value in options.items()},
                "pattern": kind.pattern if issubclass(kind, Rewrite) else "",
                "reorders": kind.reorders,
                "doc": doc,
            }
        )
        parts.append(
            "\n".join([str(made()), *(f"    {line}".rstrip() for line in doc.split("\n"))])
        )
    out.result({"passes": found}, "\n\n".join(parts))
