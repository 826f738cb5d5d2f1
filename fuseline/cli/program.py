"""The `fuseline` program: which commands there are, and how each way of ending is reported."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Protocol, cast

from fuseline._version import __version__
from fuseline.cli.output import Output
from fuseline.config import Config
from fuseline.errors import FuselineError, FuselineWarning, InternalError, UsageError
from fuseline.logs import apply_config

logger = logging.getLogger(__name__)

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130

COMMANDS = {
    "run": "run a model compiled and eager, and compare numbers and times",
    "generate": "continue a prompt with a causal language model",
    "export": "compile a model ahead of time, to one file",
    "inspect": "show what a compiled file holds, check it, or compare two",
    "opt": "run passes over IR text, such as a dump, and print the IR",
    "explain": "list the sites of a model: fused, or missed with the reason",
    "bisect": "find the rewrite, pass or kernel that breaks a model",
    "reduce": "shrink a func that shows what is wrong, to a few lines",
    "repro": "write a model down as a reproducer, or replay one",
    "cache": "look at, check, clean up and move what was built",
    "doctor": "show versions, compilers, directories and the options in force",
}

TOLERANT = ("fuseline.cli.doctor",)
"""Commands that go on where the environment is wrong, and say what is."""


class Command(Protocol):
    """What the module of a command defines, besides its docstring."""

    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""

    def run(self, arguments: argparse.Namespace, out: Output) -> int:
        """Do the work, and return the exit code."""
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0: done; 1: the work failed, or numbers differ; 2: wrong usage."""
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = parser(words[0] if words else None).parse_args(words)
    out = Output(json=arguments.json)
    with warnings.catch_warnings():
        _show_our_warnings(out)
        try:
            if arguments.module.__name__ not in TOLERANT:
                apply_config(Config())
            code = cast("Command", arguments.module).run(arguments, out)
            sys.stdout.flush()  # a reader that has gone is met here, and not as Python ends
            return code
        except FuselineError as error:
            out.error(error.diagnostic)
            return WRONG_USAGE if isinstance(error, UsageError) else FAILED
        except KeyboardInterrupt:
            out.note("interrupted")
            return INTERRUPTED
        except BrokenPipeError:
            return _reader_left()
        except Exception as error:
            return _bug(error, out)


def _bug(error: Exception, out: Output) -> int:
    """Report what should not happen in one line; the traceback is there for those who ask."""
    logger.debug("internal error", exc_info=error)
    known = isinstance(error, InternalError)
    out.note(str(error) if known else f"internal error: {type(error).__name__}: {error}")
    out.note("FUSELINE_LOG=debug shows where this happened; please report it")
    return FAILED


def _reader_left() -> int:
    """Whoever read our output has seen enough, as `head` has; without this, Python complains once
    more at its end.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of the whole command line; of a command alone, where one is named, as each of the
    others would be imported for nothing.
    """
    return parsers(command)[0]


def parsers(
    only: str | None = None,
) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the whole command line, and those of the commands by name."""
    top = argparse.ArgumentParser(
        prog="fuseline",
        description="Compile PyTorch language models, and see what was fused and why.",
        epilog="`fuseline COMMAND --help` shows a command's arguments and an example.",
    )
    top.add_argument("--version", action="version", version=f"fuseline {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    found: dict[str, argparse.ArgumentParser] = {}
    for name, summary in COMMANDS.items():
        if only in COMMANDS and name != only:
            commands.add_parser(name, help=summary)
            continue
        module = cast("Command", importlib.import_module(f"fuseline.cli.{name}"))
        command = commands.add_parser(
            name,
            help=summary,
            description=(module.__doc__ or "").strip(),
            epilog=f"example:\n{module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(module=module)
        found[name] = command
    return top, found


def _show_our_warnings(out: Output) -> None:
    """Print our own warnings as diagnostics; others keep Python's form."""
    usual = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: object = None,
        line: str | None = None,
    ) -> None:
        if isinstance(message, FuselineWarning):
            out.note(f"warning: {message}")
        else:
            usual(message, category, filename, lineno, None, line)

    warnings.showwarning = show
    warnings.simplefilter("always", FuselineWarning)
