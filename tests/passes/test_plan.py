"""Planning: live ranges, shared memory, and copies where a write would overtake a read."""

from __future__ import annotations

import torch

from fuseline.ir.core import Func
from fuseline.ir.evaluate import evaluate
from fuseline.ir.layout import LayoutMap
from fuseline.ir.text import parse_func, print_func
from fuseline.ir.types import dim, symbol
from fuseline.passes.manager import PassManager
from fuseline.passes.plan import Memory, ProtectReads, live_ranges, share_memory


def _memory(func: Func) -> Memory:
    layouts = LayoutMap(func)
    steps = [op for op in func.ops if not layouts.is_view(op)]
    ranges = live_ranges(func, layouts, steps)
    outputs = {layouts.root(v) for v in func.returns}
    return share_memory(ranges.values(), {v: v.tensor.nbytes for v in ranges}, outputs)


def test_a_chain_needs_two_temporaries_whatever_its_length() -> None:
    """Each value is dead once the next is there: layers reuse the same memory."""
    lines = ["%v0 = neg %x"] + [f"%v{i} = neg %v{i - 1}" for i in range(1, 9)]
    body = "\n".join(lines)
    memory = _memory(parse_func(f"func @f(%x: f32[S, 8]) {{\n{body}\nreturn %v8 }}"))
    assert memory.temps == [dim(32 * symbol("S"))] * 2
    assert len(memory.place) == 8  # the last one is an output


def test_a_view_keeps_its_root_alive() -> None:
    """Reading a slice of a dead-looking value reads that value's memory."""
    func = parse_func("""func @f(%x: f32[8]) {
      %a = neg %x
      %s = slice %a {axis = 0, start = 0, stop = 4}
      %b = neg %x
      %c = neg %b
      %d = neg %c
      %e = add %s, %s
      return %d, %e
    }""")
    memory = _memory(func)
    place = {v.hint: t for v, t in memory.place.items()}
    assert place["a"] not in (place["b"], place["c"])


def test_memory_is_shared_only_by_equal_sizes() -> None:
    """Sizes are compared as expressions: S and T may differ at run time."""
    func = parse_func("""func @f(%x: f32[S], %y: f32[T]) {
      %a = neg %x
      %b = neg %a
      %c = neg %y
      %d = neg %c
      return %b, %d
    }""")
    assert len(_memory(func).temps) == 2


def test_protect_reads_copies_what_is_overwritten_before_its_last_use() -> None:
    """The old contents are used after the write, through a view."""
    func = parse_func("""func @f(%k: buffer<f32[4, 2]>, %x: f32[4, 2]) {
      %old = read %k
      %row = slice %old {axis = 0, start = 0, stop = 1}
      write %k, %x
      %y = add %row, %row
      return %y
    }""")
    PassManager([ProtectReads()], check=True).run(func)
    assert [op.name for op in func.ops] == ["read", "copy", "slice", "write", "add"]
    before, x = torch.arange(8.0).reshape(4, 2), torch.ones(4, 2)
    (y,) = evaluate(func, [before.clone(), x])
    assert torch.equal(y, 2 * before[:1])


def test_no_copy_where_the_read_is_dead_before_the_write() -> None:
    """The normal decode step: read after the write, or be done before it."""
    text = """func @f(%k: buffer<f32[4]>, %x: f32[4]) {
      %old = read %k
      %y = add %old, %x
      write %k, %y
      %new = read %k
      %z = add %new, %x
      return %z
    }"""
    func = parse_func(text)
    run = PassManager([ProtectReads()], check=True).run(func)
    assert not run.passes[0].changed
    assert print_func(func) == print_func(parse_func(text))
