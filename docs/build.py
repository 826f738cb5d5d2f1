"""Builds the pages that are generated: diagnostics, the command line, and the passes.

    python -m docs.build

`tests/docs` holds the pages in the tree to what this writes.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fuseline.errors import Code

HERE = Path(__file__).parent
PROGRAMS = HERE.parent / "tests" / "errors" / "programs"

GROUPS = {
    "FL01": "Options and arguments",
    "FL02": "Capture and import",
    "FL03": "IR",
    "FL04": "Passes",
    "FL05": "Code generation",
    "FL06": "The cache",
    "FL07": "Compilers and native code",
    "FL08": "Models and their files",
    "FL09": "Inputs at run time",
}


ERRORS = """\
# Diagnostics

Every problem that you can do something about has a code. It is printed as

```text
code title in place: found this, expected that. Hint: do this.
```

and raised as an exception whose `diagnostic` has these parts as attributes. Warnings of the kind
`FuselineWarning` carry one, too: they say which documented fallback was taken. The codes are
declared in `fuseline/errors.py`, and the examples are what the programs in `tests/errors/programs`
print.
"""

CLI = """\
# The command line

Results go to standard output, everything else to standard error. `--json` prints one JSON object
instead of text. The exit code is 0 when the work is done, 1 when it failed or the numbers differ,
and 2 for wrong usage. Every option of `fuseline.Config` can be given with `--set`, and has an
environment variable; `fuseline doctor` shows them all.
"""

PASSES = """\
# Passes

In the order in which they run. The examples are the docstrings of the passes, and a test runs each
of them: the IR must come out as shown, and compute the same numbers.
"""


def errors_page() -> str:
    """Every code of the catalogue: its meaning, what it looks like, and what to do."""
    from fuseline.errors import CATALOGUE

    parts = [ERRORS]
    for prefix, title in GROUPS.items():
        codes = [code for name, code in sorted(CATALOGUE.items()) if name.startswith(prefix)]
        if codes:
            parts += [f"## {title}\n", *map(_code, codes)]
    return "\n".join(parts)


def _code(code: Code) -> str:
    texts = [path.read_text() for path in sorted(PROGRAMS.glob(f"{code.code.lower()}_*.txt"))]
    hint = f"\nWhat to do: {code.hint}.\n" if code.hint else ""
    return (
        f"### {code.code}: {code.title}\n\n{code.meaning} Raised as `{code.kind.__name__}`.\n"
        f"{hint}\n```text\n{''.join(texts)}```\n"
    )


def cli_page() -> str:
    """The help of every command, as the program prints it."""
    from fuseline.cli.program import parsers

    top, commands = parsers()
    parts = [CLI, f"```text\n{top.format_help()}```\n"]
    for name, command in commands.items():
        parts.append(f"## fuseline {name}\n\n```text\n{command.format_help()}```\n")
    return "\n".join(parts)


def passes_page() -> str:
    """The passes in the order in which they run, each with its documented example."""
    from fuseline.passes.pipeline import default_pipeline

    parts = [PASSES]
    kinds = list(dict.fromkeys(type(item) for item in default_pipeline()))
    for kind in kinds:
        summary, _, rest = inspect.cleandoc(kind.__doc__ or "").partition("\n")
        body = f"\n```text\n{rest.strip()}\n```\n" if rest.strip() else ""
        parts.append(f"## {kind.name}\n\n{summary}\n{body}")
    return "\n".join(parts)


PAGES: dict[str, Callable[[], str]] = {
    "errors.md": errors_page,
    "cli.md": cli_page,
    "passes.md": passes_page,
}


def main() -> None:
    """Write every generated page."""
    os.environ["COLUMNS"] = "100"  # argparse wraps to the terminal otherwise
    for name, render in PAGES.items():
        (HERE / name).write_text(render())


if __name__ == "__main__":
    main()
