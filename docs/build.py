"""Builds the pages that are generated: diagnostics, commands, passes, and the Python interface.

    python -m docs.build

`tests/docs` holds the pages in the tree to what this writes.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

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
    "FL10": "GPUs",
    "FL11": "Artifacts",
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

PYTHON = """\
# From Python

Everything public is a name in `fuseline`. Importing it loads neither torch nor a compiler.

```python
import torch
from torch import Tensor, nn

import fuseline


@fuseline.compile  # a function of tensors
def scaled(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


@fuseline.compile(dynamic=True)  # a class of modules, with options
class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 40), nn.Linear(40, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.silu(self.up(x)))


block = Block()
model = fuseline.compile(nn.Sequential(nn.RMSNorm(16), nn.Linear(16, 16)))  # one module
with torch.inference_mode():
    for rows in (1, 3, 7):  # sizes that change are compiled once more, and then for all sizes
        x = torch.linspace(-1, 1, rows * 16).view(rows, 16)
        model(block(scaled(x, torch.ones(16))))

print(block.report())  # fused, and missed with the reason
print(model.report().count("rms_norm"), model.report().stats["programs"])
```

* The first call compiles, and so does a later one that does not fit what was compiled: another
  dtype, a size that was fixed, another branch of Python. These are the rules of
  `torch.compile`, graph breaks included; the report counts them. Where a graph would end
  within a loop, torch leaves the whole function to eager; the report says how many. Past torch's
  limit on recompilations (`torch._dynamo.config.recompile_limit`), calls that fit nothing run
  eagerly; the report says how many and by which option.
  `torch._dynamo.config.fail_on_recompile_limit_hit` makes torch raise there.
* Compile under `torch.no_grad()` or `torch.inference_mode()`, or have them decorate `forward`.
* A whole graph is left to torch, call by call and correct, where gradients are on and wanted,
  tensors are on several devices, or on one that is neither the CPU nor a GPU of the targets,
  autocast is on inside, a complex tensor is returned or stored conjugated, another one is stored
  negated, or written arguments share memory. The report begins with what was not compiled.
* A compiled module is an instance of the original's class by `isinstance`, and has its
  parameters. Sibling projections may be packed into one buffer; `state_dict`,
  `load_state_dict` and changes in place work as before. Replaced weights are packed again at the
  next call; where something else holds them (a `state_dict` that was assigned), the model runs op
  by op, with a warning, until it is compiled again.
* Wrong shapes, dtypes and devices of a call are met by torch first, as it traces: its error says
  what eager's would.
* A step of a model also takes the time in which torch checks its guards, some thousands for a
  large model. In a loop in which nothing of the model is changed, once all of it is compiled,
  `with torch.compiler.set_stance(skip_guard_eval_unsafe=True):` leaves out most of them: it is
  torch's, and does not look at what would need another compilation.
* Whatever cannot be done natively is done by torch, and the report says why. With `strict=True`
  a kernel that cannot be built raises instead; ops that fuseline has no kernel for, gradients,
  graph breaks and torch's limit on recompilations do not.

## Options

Keyword arguments of `fuseline.compile`, fields of `fuseline.Config`, and `options={...}` of
`torch.compile(model, backend="fuseline")`. An argument wins over the variable.

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
    kinds = list(dict.fromkeys(type(item) for item in default_pipeline(on_gpu=True)))
    for kind in kinds:
        summary, _, rest = inspect.cleandoc(kind.__doc__ or "").partition("\n")
        body = f"\n```text\n{rest.strip()}\n```\n" if rest.strip() else ""
        parts.append(f"## {kind.name}\n\n{summary}\n{body}")
    return "\n".join(parts)


def python_page() -> str:
    """How to use it from Python, every option, and every public name."""
    import fuseline

    rows = ["| option | variable | default | |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(fuseline.Config):
        if variable := field.metadata.get("variable"):
            default = field.metadata["default"]
            shown = "" if default in (None, ()) else f"`{default}`"
            rows.append(f"| `{field.name}` | `{variable}` | {shown} | {field.metadata['help']} |")
    parts = [PYTHON, "\n".join(rows), "\n\n## Names\n"]
    for name in fuseline.__all__:
        value = getattr(fuseline, name)
        if callable(value):
            parts.append(f"\n### {name}\n\n```text\n{inspect.getdoc(value)}\n```\n")
            parts += ["\n" * bool(_methods(value)), *map(_method, _methods(value))]
    return "".join(parts)


def _methods(kind: object) -> list[Callable[..., object]]:
    """The public methods that a class itself defines."""
    own: Mapping[str, object] = vars(cast("type", kind)) if inspect.isclass(kind) else {}
    plain = [getattr(m, "__func__", m) for name, m in own.items() if not name.startswith("_")]
    return [method for method in plain if inspect.isfunction(method)]


def _method(method: Callable[..., object]) -> str:
    summary = (inspect.getdoc(method) or "").partition("\n\n")[0].replace("\n", " ")
    names = [n for n in inspect.signature(method).parameters if n not in ("self", "cls")]
    return f"* `{method.__qualname__}({', '.join(names)})`: {summary}\n"


PAGES: dict[str, Callable[[], str]] = {
    "errors.md": errors_page,
    "cli.md": cli_page,
    "passes.md": passes_page,
    "python.md": python_page,
}


def main() -> None:
    """Write every generated page."""
    os.environ["COLUMNS"] = "100"  # argparse wraps to the terminal otherwise
    for name, render in PAGES.items():
        (HERE / name).write_text(render())


if __name__ == "__main__":
    main()
