"""Text that was cut short or changed anywhere gives a func or an `IRError`, and nothing else."""

from __future__ import annotations

import functools

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuseline.ir.core import IRError
from fuseline.ir.text import parse_func, print_func
from fuseline.ir.verify import verify
from fuseline.testing import documented_examples, shipped_passes

PROPERTY = settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], max_examples=400
)
PIECES = """\
% %x %y @ # " ' \\ ( ) { } [ ] < > = : , _ $ $0 $9 ! . .. ... -1 0 1 7 99999999999999999999 1.5
1e999 -inf inf nan true none func return where in buffer int f32 i64 bool param number pinned add
full reshape attention pointwise aten.call 9**9**9 (S+1)**8 S//0 S%0 -S S*S Max() Max(S,1) (()
"\\x" "\\ud800" // /0 \u00e9 \u0663 \x00 %"" %"a b" axis = dims = shape = dtype = value ="""
TOKENS = [*PIECES.split(), " ", "\n", "\t", "(" * 300, "-" * 300, "{body = func @f() {"]


@functools.cache
def texts() -> list[str]:
    """The examples of all passes, as they are printed."""
    kinds = shipped_passes()
    examples = [e for kind in kinds for e in documented_examples(kind)]
    return [
        print_func(parse_func(t), locations=True) for e in examples for t in (e.before, e.after)
    ]


@st.composite
def spoiled(draw: st.DrawFn) -> str:
    """The text of a func with up to four changes: a part left out, put in, or written twice."""
    text = draw(st.sampled_from(texts()))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.integers(0, 12)))
        piece = draw(st.sampled_from(["", *TOKENS, text[start : start + 40]]))
        text = text[:start] + piece + text[stop:]
    return text


def check(text: str) -> None:
    """The text is refused with a place in it, or is a func, which prints as what it is."""
    try:
        func = parse_func(text)
    except IRError:
        return
    try:
        verify(func)
    except IRError:
        return
    printed = print_func(func)
    assert print_func(parse_func(printed)) == printed


@given(st.data())
@settings(PROPERTY)
def test_changed_text(data: st.DataObject) -> None:
    check(data.draw(spoiled()))


@given(st.data())
@settings(PROPERTY, max_examples=200)
def test_text_cut_short(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(texts()))
    check(text[: data.draw(st.integers(0, len(text)))])


@given(st.text(alphabet=st.sampled_from("".join(TOKENS)), max_size=80))
@settings(PROPERTY, max_examples=200)
def test_any_text(text: str) -> None:
    check(text)
    check(f"func @f(%x: f32[{text}]) {{ return %x }}")
    check(f"func @f(%x: f32[S]) {{ %y = full {{value = {text}, dtype = f32}} return %y }}")
