"""Lowering of low-rank adapters of which each row has its own."""

from __future__ import annotations

from fuseline.codegen.adapters import Adapters, adapters_of, row_stride, rows_of
from fuseline.codegen.cpu.adapters import MultiLoraKernel, Part
from fuseline.codegen.lower import WORKERS, Launch, Lowered, Scratch, lowers
from fuseline.codegen.lower import work as work_of
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.adapters import MultiLora


@lowers(MultiLora)
def lower_multi_lora(op: MultiLora, layouts: LayoutMap) -> Lowered:
    """Two launches: the rows of every adapter by its A; those by its B, and the sum with base."""
    adapters = adapters_of(op, layouts)
    if not isinstance(adapters, Adapters):
        return adapters
    kernel, rows = MultiLoraKernel.of(adapters, steady=layouts.batch_invariant), rows_of(op)
    given = (op.ids, op.x, op.a, op.b, op.base, op.factor, op.y)
    scratch = Scratch(kernel.scratch(rows, WORKERS))
    buffers = (*(v for v in given if v is not None), scratch)
    strides = [row_stride(v, layouts) for v in (op.x, op.y, op.base) if v is not None]
    return [
        Launch(kernel, buffers, (part.value, rows, *strides), work_of(op))
        for part in (Part.LOW, Part.HIGH)
    ]


__all__ = ["lower_multi_lora"]
