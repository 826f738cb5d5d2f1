"""Pass dumps: what every pass did to a func, its sites, the generated sources and the plan.

    model-00/00-imported.fl              the func as imported
    model-00/03-fuse-add-rms-norm.fl     after the third pass; only passes that changed something
    model-00/03-fuse-add-rms-norm.diff   what it changed
    model-00/rewrites.txt                every applied rewrite, by number
    model-00/sites.txt                   the sites, fused and missed, with reasons
    model-00/kernels/<symbol>.cpp        the generated sources; .py where they are Triton, .cu CUDA
    model-00/kernels/<symbol>.run.py     builds, runs, checks and times one of them alone
    model-00/kernels/<symbol>.ptx        what became of one for a GPU, before it is machine code
    model-00/plan.txt                    buffers and steps
    model-00/index.html                  all of it, and more, on one page

Every file is written and flushed as soon as it is known, so that a crash keeps what came before;
the page, which others write, is there at the end, and as soon as a pass fails.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fuseline.errors import INVALID_OPTION
from fuseline.header import kind_of
from fuseline.ir.core import Func
from fuseline.ir.text import print_func
from fuseline.passes.record import Run
from fuseline.passes.rewrite import Pass
from fuseline.report import PassRecord, Site
from fuseline.runtime.plan import ArgSpec, Buffer, HostStep, LibraryStep, Plan, Step, View

if TYPE_CHECKING:
    import torch


class Dump:
    """Writes the dump of one func below a directory; an observer of the pass manager."""

    def __init__(self, directory: Path, name: str) -> None:
        self.root = _new_folder(directory, name)
        self._number = 0
        self._applied = 0
        self._text = ""

    def start(self, func: Func) -> None:
        """The func as imported."""
        self._text = print_func(func, locations=True)
        _write(self.root / "00-imported.fl", self._text)

    def before_pass(self, func: Func, pass_: Pass) -> None:
        """Nothing to do: the text after the pass before is at hand."""

    def after_pass(self, func: Func, pass_: Pass, record: PassRecord, run: Run) -> None:
        """The func and what changed, where anything did."""
        self._number += 1
        if not record.changed:
            return
        stem = f"{self._number:02d}-{pass_.name}"
        before, self._text = self._text, print_func(func, locations=True)
        _write(self.root / f"{stem}.fl", self._text)
        diff = list(
            difflib.unified_diff(
                before.splitlines(), self._text.splitlines(), "before", stem, lineterm="", n=2
            )
        )
        _write(self.root / f"{stem}.diff", "\n".join(diff) + "\n")
        _append(self.root / "rewrites.txt", "".join(f"{a}\n" for a in run.applied[self._applied :]))
        self._applied = len(run.applied)
        self.sites(run.sites())

    def sites(self, sites: Iterable[Site]) -> None:
        """The sites as they stand now."""
        lines = [
            f"{s.status:7}{s.pattern:16}{s.where}{f': {s.reason}' if s.reason else ''}"
            for s in sites
        ]
        _write(self.root / "sites.txt", "\n".join(lines) + "\n")

    def kernels(self, sources: Mapping[str, str], ptx: Mapping[str, str] | None = None) -> None:
        """The generated sources, and what PTX was made of them."""
        folder = self.root / "kernels"
        folder.mkdir(exist_ok=True)
        for symbol, text in sources.items():
            _write(folder / f"{symbol}.{kind_of(text)}", text)
        for symbol, text in (ptx or {}).items():
            _write(folder / f"{symbol}.ptx", text)

    def scripts(self, scripts: Mapping[str, str]) -> None:
        """What runs each kernel alone, beside its source."""
        for name, text in scripts.items():
            _write(self.root / "kernels" / name, text)

    def plan(self, plan: Plan) -> None:
        """The plan, a line a buffer and a line a step."""
        lines = [f"arg {i}: {_argument(a)}" for i, a in enumerate(plan.args)]
        lines += [f"buffer {i}: {_buffer(b)}" for i, b in enumerate(plan.buffers)]
        lines += [f"step {i}: {_describe(s)}" for i, s in enumerate(plan.steps)]
        lines += [f"return {i}: {_place(v)} as {_tensor(v)}" for i, v in enumerate(plan.returns)]
        _write(self.root / "plan.txt", "\n".join(lines) + "\n")


def check_folder(directory: Path) -> None:
    """Make the directory for dumps, where it is not there.

    Raises:
        UsageError: FL0101, for what is no directory or cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        refusal = "" if os.access(directory, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
    except OSError as error:
        refusal = error.strerror or str(error)
    if refusal:
        raise INVALID_OPTION.error(
            "dump_dir", found=f"{directory} ({refusal})", expected="a directory to write to"
        )


def _new_folder(directory: Path, name: str) -> Path:
    """A new folder ``name-00``, ``name-01`` ...; several processes may dump into one directory."""
    directory.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        folder = directory / f"{name}-{number:02d}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def _argument(spec: ArgSpec) -> str:
    if spec.kind == "int":
        return f"{spec.name} int = {spec.value}"
    flags = {"fixed": spec.fixed, "written": spec.written, "not aligned": not spec.aligned}
    return ", ".join([f"{spec.name} {_tensor(spec)}", *(name for name, on in flags.items() if on)])


def _buffer(buffer: Buffer) -> str:
    """Its kind, and what else is known of that: results of host steps are as large as they come."""
    match buffer.kind:
        case "arg":
            return f"argument {buffer.arg} ({buffer.name} {_dtype(buffer.dtype)})"
        case "temp" | "output":
            return f"{buffer.kind} of {buffer.nbytes} bytes"
        case "scratch":
            return "scratch of the step at hand"
        case "host":
            return "made by a host step"


def _tensor(of: ArgSpec | View) -> str:
    """Dtype, shape and strides (in elements)."""
    shape, strides = (", ".join(map(str, values)) for values in (of.shape, of.strides))
    return f"{_dtype(of.dtype)}[{shape}] strides ({strides})"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _describe(step: Step) -> str:
    if isinstance(step, HostStep):
        takes = ", ".join(_place(v) for v in step.operands)
        gives = ", ".join(_place(v) for v in step.results)
        return f"host {step.label} ({takes}) -> ({gives}) because {step.reason}"
    when = "" if step.when is None else f" when {step.when[1]} <= {step.when[0]} <= {step.when[2]}"
    if isinstance(step, LibraryStep):
        takes = ", ".join("none" if v is None else _place(v) for v in step.operands)
        gives = ", ".join(_place(v) for v in step.results)
        given = "".join(f" {name}={value}" for name, value in step.attributes.items())
        return f"library {step.name}{given} ({takes}) -> ({gives}){when}  // {step.label}"
    buffers = ", ".join(f"{b}+{o}" if o else str(b) for b, o in step.buffers)
    dims = ", ".join(map(str, step.dims))
    grid = "" if step.grid == (1, 1, 1) else f" grid ({', '.join(map(str, step.grid))})"
    return f"{step.symbol} [{buffers}] ({dims}){grid} work {step.work}{when}  // {step.label}"


def _place(view: View) -> str:
    return f"{view.buffer}+{view.offset}" if view.offset else str(view.buffer)
