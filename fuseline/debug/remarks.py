"""Remarks: what every pass applied and what it missed, for people and for tools.

They are read from the record that the pass manager keeps of a run. As text a remark is a line that
begins with the place in the user's program. In a file it is a document of YAML in the layout of
LLVM's optimisation records, so that what reads those reads these: the values of ``Args`` one behind
the other are the message, and the keys say what each is.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, TypeAlias

from fuseline.config import Config
from fuseline.debug.files import refusal_of, replace_text
from fuseline.errors import INVALID_OPTION
from fuseline.ir.core import Cost, Loc, Op, Value
from fuseline.ir.types import Dim, format_dim
from fuseline.passes import pipeline
from fuseline.passes.record import Applied, Missed, Run
from fuseline.passes.rewrite import PASSES

log = logging.getLogger(__name__)

Kind: TypeAlias = Literal["Passed", "Missed", "Analysis"]
Args: TypeAlias = "Iterator[tuple[str, str]]"

CODEGEN = "codegen"
"""The name by which remarks of code generation are asked for: it is no pass of the pipeline."""

_REFUSED = "NoKernel"


@dataclass(frozen=True)
class Remark:
    """One thing that was done, or was not.

    Attributes:
        kind: ``Passed`` for an applied rewrite, ``Missed`` for a missed site, ``Analysis`` for what
            code generation chose or refused.
        pass_name: the pass, or ``codegen``.
        name: the pattern of the site; ``Rewritten`` for a rewrite that makes none.
        where: the place in the user's program.
        function: the compiled program.
        args: the message in parts, each with its key; ``String`` is text between them.
        value: the name of a value of it, which a line begins with where nothing is known of the
            place: such as IR that somebody wrote.
    """

    kind: Kind
    pass_name: str
    name: str
    where: Loc | None
    function: str
    args: tuple[tuple[str, str], ...]
    value: str = ""

    @property
    def missed(self) -> bool:
        """Whether it is of the kind that ``remarks_missed`` asks for, not ``remarks``."""
        return self.kind == "Missed" or self.name == _REFUSED

    @property
    def message(self) -> str:
        """The parts, one behind the other."""
        return "".join(text for _, text in self.args)

    def __str__(self) -> str:
        option = "remarks-missed" if self.missed else "remarks"
        known = self.where.source if self.where else ""
        place = known or (f"%{self.value}" if self.value else "<unknown>")
        return f"{place}: remark: {self.message} [--{option}={self.pass_name}]"

    def to_yaml(self) -> str:
        """The remark as one document."""
        lines = [f"--- !{self.kind}", _entry("Pass", self.pass_name), _entry("Name", self.name)]
        file, _, line = (self.where.source if self.where else "").rpartition(":")
        if file and line.isdecimal():
            place = f"{{ File: {quoted(file)}, Line: {line}, Column: 0 }}"
            lines.append(f"{'DebugLoc:':16} {place}")
        lines += [_entry("Function", self.function), "Args:"]
        lines += [f"  - {_entry(key, text)}" for key, text in self.args]
        return "\n".join([*lines, "...", ""])


def _entry(key: str, text: str) -> str:
    return f"{f'{key}:':16} {quoted(text)}"


def quoted(text: str) -> str:
    """A text as a double-quoted scalar of YAML: as JSON has it, but for what YAML does not take."""
    return "".join(
        c if c.isprintable() else f"\\U{ord(c):08x}" for c in json.dumps(text, ensure_ascii=False)
    )


# -- from the record of a run -----------------------------------------------------------------


def of_run(run: Run, function: str) -> list[Remark]:
    """A remark for every applied rewrite, by number, and one for every missed site."""
    passed = [
        Remark(
            *("Passed", a.rewrite, a.pattern or "Rewritten", a.where, function),
            args=tuple(_done(a)),
            value=_name(a.values),
        )
        for a in run.applied
    ]
    missed = [
        Remark(
            *("Missed", m.rewrite, m.pattern, m.where, function),
            args=tuple(_left(m)),
            value=_name(m.op.results),
        )
        for m in run.missed_sites()
    ]
    return passed + missed


def of_kernels(
    refusals: Mapping[Op, str], forms: Mapping[Op, Mapping[str, str]], function: str
) -> list[Remark]:
    """A remark for every op without a kernel, and one for every choice between forms of a kernel.

    Args:
        refusals: why ops have none.
        forms: what is done for which sizes, by what it concerns.
        function: the compiled program.

    """
    found: list[Remark] = []
    for op, reason in refusals.items():
        if reason:
            args = (("Op", op.name), *_at(op.loc), ("String", " has no kernel: "))
            args = (*args, ("Reason", reason))
            name = _name(op.results)
            found.append(Remark("Analysis", CODEGEN, _REFUSED, op.loc, function, args, name))
    for op, chosen in forms.items():
        if chosen:
            args = (("Op", op.name), *_at(op.loc), *_details(chosen, ": "))
            name = _name(op.results)
            found.append(Remark("Analysis", CODEGEN, "Form", op.loc, function, args, name))
    return found


def _name(values: Iterable[Value]) -> str:
    """The name of the first of some values; empty where there is none."""
    return next((value.hint for value in values), "")


def _done(applied: Applied) -> Args:
    yield "String", "rewrite "
    yield "Rewrite", str(applied.number)
    if applied.pattern:
        yield "String", " fused "
        yield "Site", applied.pattern
    yield from _at(applied.where)
    yield from _listed(": ", "Held", applied.held)
    yield from _details(applied.details, "; ")
    yield "String", "; "
    yield from _from_to("Bytes", applied.before.bytes, applied.after.bytes)
    yield "String", ", "
    yield from _from_to("Flops", applied.before.flops, applied.after.flops)


def _left(miss: Missed) -> Args:
    yield "String", "missed "
    yield "Site", miss.pattern
    yield from _at(miss.where)
    yield "String", ": "
    yield "Reason", miss.reason
    yield from _listed("; held before that: ", "Held", miss.held)
    yield from _listed("; got less far: ", "Other", miss.others)
    yield from _details(miss.details, "; ")
    cost: Cost = miss.op.cost()
    yield "String", "; as it stands, "
    yield "Op", miss.op.name
    yield "String", " takes "
    yield "BytesBefore", format_dim(cost.bytes)
    yield "String", " bytes, "
    yield "FlopsBefore", format_dim(cost.flops)
    yield "String", " flops"


def _at(where: Loc | None) -> Args:
    if where is not None and where.module:
        yield "String", " at "
        yield "Module", where.module


def _listed(before: str, key: str, texts: Iterable[str]) -> Args:
    for number, text in enumerate(texts):
        yield "String", ", " if number else before
        yield key, text


def _details(details: Mapping[str, str], before: str) -> Args:
    for number, (name, text) in enumerate(details.items()):
        yield "String", f"{'; ' if number else before}{name}: "
        yield "".join(word.capitalize() for word in re.findall(r"\w+", name)), text


def _from_to(what: str, before: Dim, after: Dim) -> Args:
    yield f"{what}Before", format_dim(before)
    yield "String", " to "
    yield f"{what}After", format_dim(after)
    yield "String", f" {what.lower()}"


# -- where they go ------------------------------------------------------------------------------


def wanted(config: Config) -> bool:
    """Whether any of the options asks for remarks."""
    return any((config.remarks, config.remarks_missed, config.remarks_output))


def emit(remarks: Iterable[Remark], config: Config) -> None:
    """Show the remarks that the options ask for, and add all of them to the file that they name.

    The lines are logged at level INFO where somebody listens to that, and written to standard error
    where nobody does: who asks for them is to see them.

    Raises:
        UsageError: FL0101, if the file cannot be written.

    """
    remarks = list(remarks)
    patterns = {False: config.remarks, True: config.remarks_missed}
    lines = [
        str(r)
        for r in remarks
        if (pattern := patterns[r.missed]) is not None and re.search(pattern, r.pass_name)
    ]
    if log.isEnabledFor(logging.INFO):
        for line in lines:
            log.info("%s", line)
    elif lines:
        sys.stderr.write("".join(f"{line}\n" for line in lines))
    if config.remarks_output is not None:
        _FILES.add(config.remarks_output, "".join(r.to_yaml() for r in remarks))


def check(config: Config) -> None:
    """Refuse patterns that no pass fits, and a file that cannot be made.

    Raises:
        UsageError: FL0101.

    """
    assert pipeline.default_pipeline, "importing the pipeline registers its passes"
    names = [*PASSES, CODEGEN]
    for option, pattern in (("remarks", config.remarks), ("remarks_missed", config.remarks_missed)):
        if pattern is None or any(re.search(pattern, name) for name in names):
            continue
        near = get_close_matches(pattern.replace("_", "-"), names, n=1)
        found = f"{pattern!r}, which fits no pass"
        expected = near[0] if near else f"one that fits a name of: {', '.join(sorted(names))}"
        raise INVALID_OPTION.error(option, found=found, expected=expected)
    if config.remarks_output is not None:
        refusal = refusal_of(config.remarks_output)
        if refusal:
            raise _unwritable(config.remarks_output, refusal)


def _unwritable(path: Path, why: str) -> Exception:
    return INVALID_OPTION.error(
        "remarks_output", found=f"{path} ({why})", expected="a file in a directory to write to"
    )


class _Files:
    """The files that this process has begun: programs are added to them, and others start anew."""

    def __init__(self) -> None:
        self._begun: set[Path] = set()
        self._lock = threading.Lock()  # programs are built in threads

    def add(self, path: Path, text: str) -> None:
        """Put the text at the end of what this process has written; what was there before goes."""
        path = path.resolve()
        with self._lock:
            known = path in self._begun and path.is_file()
            _replace(path, (path.read_text(encoding="utf-8") if known else "") + text)
            self._begun.add(path)


_FILES = _Files()


def _replace(path: Path, text: str) -> None:
    try:
        replace_text(path, text)
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error


__all__ = ["Remark", "check", "emit", "of_kernels", "of_run", "quoted", "wanted"]
