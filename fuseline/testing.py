"""Helpers for tests of passes: IR text in, IR text out, and the same numbers.

`assert_rewrites` runs a pass over one func and compares the outcome with another, up to the names
of values, then runs both on seeded inputs under the ops' reference semantics. `assert_no_rewrite`
asserts that nothing changes, and why. `make_arguments` gives seeded arguments for any func.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

import fuseline.passes
from fuseline.debug.seeded import (
    Overrides,
    added_argument,
    is_buffer,
    make_arguments,
    make_binding,
    own_argument,
)
from fuseline.ir.core import Func
from fuseline.ir.evaluate import Argument, evaluate
from fuseline.ir.text import parse_func, print_func
from fuseline.ir.types import DType
from fuseline.ir.verify import verify
from fuseline.passes.manager import PassManager
from fuseline.passes.record import Run
from fuseline.passes.rewrite import PASSES, Pass

Passes: TypeAlias = "Pass | Sequence[Pass]"

TOLERANCES: dict[DType, tuple[float, float]] = {
    DType.F64: (1e-12, 1e-12),
    DType.F32: (1e-5, 1.3e-6),
    DType.F16: (1e-3, 1e-3),
    DType.BF16: (1e-3, 1.6e-2),
}
"""Absolute and relative tolerance by element type, where arithmetic was reordered."""


# -- comparing ------------------------------------------------------------------------------


def canonical_text(func: Func) -> str:
    """The text of a func with its values numbered: equal for funcs that differ only in names."""
    return print_func(_renamed(func))


def _renamed(func: Func) -> Func:
    twin = func.clone()
    for value in (*twin.args, *(v for op in twin.ops for v in op.results)):
        value.hint = "v"
        if value.origin is not None and value.origin.kind == "input":
            value.origin = None  # which is an input of the argument's own name
    for op in twin.ops:
        for name, attribute in op.attributes.items():
            if isinstance(attribute, Func):
                setattr(op, name, _renamed(attribute))
    return twin


def run_passes(passes: Passes, func: Func) -> Run:
    """Run one or several passes over a func, in place, with the verifier after each."""
    return PassManager([passes] if isinstance(passes, Pass) else passes, check=True).run(func)


def assert_same_values(
    before: Func,
    after: Func,
    *,
    exact: bool = True,
    sizes: Mapping[str, int] | None = None,
    given: Overrides | None = None,
    seed: int = 0,
) -> None:
    """Both funcs give the same results, and leave the same in their buffers, on seeded inputs.

    Args:
        before: the one that says what is right.
        after: the other; takes the same arguments. State that it keeps itself is zeros, and the
            buffers that it writes no longer are not compared.
        exact: bit for bit; else within `TOLERANCES`.
        sizes: the symbols' values; else two bindings are tried, odd sizes and the smallest.
        given: arguments by name, where seeded ones do not fit.
        seed: of the inputs.

    """
    small = make_binding(before, smallest=True)
    tried = [small | make_binding(before) | dict(sizes or {})]
    if sizes is None and given is None and small != tried[0]:
        tried.append(small)
    for binding in tried:
        arguments = make_arguments(before, binding, seed=seed, given=given)
        added = after.args[len(before.args) :]
        own = [added_argument(arg, binding) for arg in added]
        want, got = _run(before, arguments), _run(after, [*arguments, *own])
        states = [a for a in added if a.origin and a.origin.kind == "state"]
        replaced = {s.origin.name for s in states if s.origin} | {
            a.hint for a in after.args if states and is_buffer(a) and not after.users(a)
        }
        for name in want.keys() - {f"buffer %{hint}" for hint in replaced}:
            _compare(name, want[name], got[name], exact, binding)


def _run(func: Func, arguments: Sequence[Argument]) -> dict[str, Tensor]:
    """The results, and what the buffers hold then, by what they are called in messages."""
    own = [own_argument(a, arg) for a, arg in zip(arguments, func.args, strict=True)]
    found = {f"result {i}": t for i, t in enumerate(evaluate(func, own))}
    for arg, value in zip(func.args, own, strict=True):
        if isinstance(value, Tensor) and is_buffer(arg):
            found[f"buffer %{arg.hint}"] = value
    return found


def _compare(name: str, want: Tensor, got: Tensor, exact: bool, binding: Mapping[str, int]) -> None:
    atol, rtol = (0.0, 0.0)
    if not exact and want.is_floating_point():
        atol, rtol = TOLERANCES[DType.from_torch(want.dtype)]
    torch.testing.assert_close(
        got,
        want,
        atol=atol,
        rtol=rtol,
        equal_nan=True,
        msg=lambda text: f"{name} at {dict(binding)}: {text}",
    )


def assert_rewrites(
    passes: Passes,
    before: str,
    after: str,
    *,
    exact: bool = True,
    sizes: Mapping[str, int] | None = None,
    given: Overrides | None = None,
) -> Run:
    """A pass turns one func into another: the text up to the names of values, then the numbers.

    The pass must change something, leave valid IR, and find nothing more to do in its own outcome.
    ``exact`` is for rewrites that reorder no arithmetic; ``sizes`` and ``given`` as in
    `assert_same_values`. Gives the record of the run, to look at sites and reasons.

    Raises:
        AssertionError: the text differs (the message is a diff), or the numbers do.

    """
    original, func, wanted = parse_func(before), parse_func(before), parse_func(after)
    verify(wanted)
    run = run_passes(passes, func)
    _assert_same_text(canonical_text(wanted), canonical_text(func), "wanted", "got")
    assert canonical_text(original) != canonical_text(func), "the pass changed nothing"
    again = func.clone()
    run_passes(passes, again)
    _assert_same_text(canonical_text(func), canonical_text(again), "first run", "second run")
    assert_same_values(original, func, exact=exact, sizes=sizes, given=given)
    return run


def assert_no_rewrite(passes: Passes, text: str, reason: str | None) -> Run:
    """A pass leaves a func as it is, and records a miss whose reason contains ``reason``.

    ``reason`` is None where nothing looks like the pattern: then no miss may be recorded.

    Raises:
        AssertionError: the func changed, or the recorded reasons are others.

    """
    func = parse_func(text)
    before = canonical_text(func)
    run = run_passes(passes, func)
    _assert_same_text(before, canonical_text(func), "before", "after")
    reasons = [miss.reason for miss in run.missed.values()]
    if reason is None:
        assert not reasons, f"misses were recorded: {reasons}"
    else:
        assert any(reason in r for r in reasons), f"no reason contains {reason!r}: {reasons}"
    return run


def _assert_same_text(want: str, got: str, want_name: str, got_name: str) -> None:
    if want == got:
        return
    lines = difflib.unified_diff(
        want.splitlines(), got.splitlines(), want_name, got_name, lineterm="", n=30
    )
    raise AssertionError("\n".join(["the funcs differ", *lines]))


# -- documented examples --------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """A Before and After of a pass's docstring: two whole funcs."""

    before: str
    after: str


_SECTION = re.compile(r"^(Before|After):$")


def documented_examples(pass_class: type[Pass]) -> list[Example]:
    """The Before/After pairs of a pass's docstring, in order.

    Raises:
        ValueError: a Before without an After, or the reverse.

    """
    blocks = list(_blocks(inspect.cleandoc(pass_class.__doc__ or "")))
    titles = [title for title, _ in blocks]
    if titles != ["Before", "After"] * (len(blocks) // 2):
        raise ValueError(f"{pass_class.__name__}: Before and After do not alternate: {titles}")
    texts = [text for _, text in blocks]
    return [Example(b, a) for b, a in zip(texts[::2], texts[1::2], strict=True)]


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    title, lines = "", list[str]()
    for line in [*text.splitlines(), "End:"]:
        if line.startswith(" ") or not line:
            lines.append(line)
            continue
        if title:
            yield title, "\n".join(lines)
        match = _SECTION.match(line)
        title, lines = (match.group(1) if match else ""), []


def assert_documented(pass_class: type[Pass]) -> None:
    """The docstring of a pass has at least one Before/After, and each is what the pass does."""
    examples = documented_examples(pass_class)
    assert examples, f"{pass_class.__name__} has no Before/After in its docstring"
    for example in examples:
        assert_rewrites(pass_class(), example.before, example.after, exact=not pass_class.reorders)


def shipped_passes() -> list[type[Pass]]:
    """Every pass of the package, by name; passes that tests define are left out."""
    for module in pkgutil.iter_modules(fuseline.passes.__path__, "fuseline.passes."):
        importlib.import_module(module.name)
    shipped = [p for p in PASSES.values() if p.__module__.startswith("fuseline.")]
    return sorted(shipped, key=lambda p: p.name)


__all__ = [
    "TOLERANCES",
    "Example",
    "assert_documented",
    "assert_no_rewrite",
    "assert_rewrites",
    "assert_same_values",
    "canonical_text",
    "documented_examples",
    "make_arguments",
    "make_binding",
    "run_passes",
    "shipped_passes",
]
