"""A script beside each kernel of a dump, which builds, runs, checks and times that kernel alone.

The script holds the op that the kernel does, as text: cut out of its program, with the memory that
its operands and results lie in, parts of larger tensors included. The source it takes from the file
beside it, so that whoever edits that sees what comes of it. What scripts do is in
`fuseline.cli.kernel`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from fuseline._version import __version__
from fuseline.header import Head
from fuseline.ir.core import Func, Op, Origin, Value
from fuseline.ir.layout import Layout, LayoutMap
from fuseline.ir.text import parse_func, print_func
from fuseline.ir.types import free_symbols
from fuseline.saved import SavedProgram

NAME = "{symbol}.run.py"
"""The name of a script; the source is ``{symbol}.cpp``, ``.py`` or ``.cu`` beside it."""

_WORD = re.compile(r"\w+")

_SCRIPT = '''"""Builds, runs, checks and times one kernel by the source beside it: edit, and run.

{about}

This needs fuseline {version}, which wrote it, and no model; --help tells what it takes.
"""

import faulthandler
import sys

from fuseline.cli.kernel import main

OP = r"""
{op}"""

MEMORY = {memory}

if __name__ == "__main__":
    faulthandler.enable(sys.__stderr__)  # an edited kernel may read and write anywhere
    sys.exit(main(__file__, symbol="{symbol}", target="{target}", op=OP, memory=MEMORY))
'''


def script(head: Head, op: Op, layouts: LayoutMap, *, target: str) -> str:
    """The text of the script for a kernel.

    Args:
        head: what there is to say of the kernel.
        op: that it does, or helps to do; the first one, where it is used for several.
        layouts: where the values of the op's func lie.
        target: that the kernel was made for.

    """
    func, places = cut(op, layouts)
    saved = json.loads(SavedProgram(func.name, func, places, (), ()).to_text())
    memory: dict[str, object] = {name: saved[name] for name in ("strides", "results")}
    memory |= {"batch_invariant": True} if layouts.batch_invariant else {}
    return _SCRIPT.format(
        symbol=head.symbol,
        target=target,
        about="\n".join(head.lines()).replace("\\", "/").replace('"""', "'''"),
        op=saved["func"],
        memory=repr(memory),
        version=__version__,
    )


def op_of(text: str, memory: Mapping[str, object]) -> tuple[Op, LayoutMap]:
    """The op of a script, and where its operands and results lie; and whether it was lowered to
    one form for all sizes.
    """
    func = parse_func(text)
    data: dict[str, object] = {"name": func.name, "func": text, "sites": [], "places": [], **memory}
    saved = SavedProgram.of_text(json.dumps(data))
    layouts = LayoutMap(saved.func, saved.layouts)
    layouts.batch_invariant = bool(memory.get("batch_invariant"))
    return saved.func.ops[-1], layouts


def cut(op: Op, layouts: LayoutMap) -> tuple[Func, dict[Value, Layout]]:
    """A func of one op and the views that lead to its operands, and the layouts of its arguments
    and of the op's results. The arguments own the memory.
    """
    func, places = Func(op.name), dict[Value, Layout]()
    known: dict[Value, Value] = {}

    def made(value: Value) -> Value:
        if value in known:
            return known[value]
        if layouts.root(value) is value:
            origin = value.origin if value.owner is None else Origin("input", value.hint)
            known[value] = func.add_arg(value.type, value.hint, origin)
            places[known[value]] = layouts.layout(value)
        else:
            view = value.owner
            assert view is not None, "an argument owns its memory"
            twin = func.append(view.clone({v: made(v) for v in view.operands}))
            known.update(zip(view.results, twin.results, strict=True))
        return known[value]

    twin = func.append(op.clone({v: made(v) for v in op.operands}))
    func.set_returns(twin.results)
    for old, new in zip(op.results, twin.results, strict=True):
        places[new] = layouts.layout(old)
    used = set(_WORD.findall(print_func(func)))
    used |= {s for at in places.values() for d in at.strides for s in free_symbols(d)}
    func.symbols |= {n: limits for n, limits in layouts.func.symbols.items() if n in used}
    return func, places


__all__ = ["NAME", "cut", "op_of", "script"]
