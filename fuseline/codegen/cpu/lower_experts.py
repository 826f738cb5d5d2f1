"""Lowerings of routed experts, with and without a shared branch beside them."""

from __future__ import annotations

import dataclasses

from fuseline.codegen.cpu.element import written
from fuseline.codegen.cpu.experts import ExpertsKernel, Part
from fuseline.codegen.cpu.experts_choice import choose_experts
from fuseline.codegen.forms import Form, When
from fuseline.codegen.lower import WORKERS, Launch, Lowered, Scratch, lowers
from fuseline.codegen.lower import work as work_of
from fuseline.codegen.mixtures import Mixture, mixture_of, shared_operands
from fuseline.ir.layout import LayoutMap
from fuseline.ir.ops.experts import Experts, Moe
from fuseline.ir.types import bounds, product


@lowers(Experts, Moe)
def lower_experts(op: Experts, layouts: LayoutMap) -> Lowered:
    """Two launches: gate and up of every expert's tokens; down, and the sums."""
    mixture = mixture_of(op, layouts, written)
    if not isinstance(mixture, Mixture):
        return mixture
    return _launches(op, mixture, layouts)


def _launches(op: Experts, mixture: Mixture, layouts: LayoutMap) -> list[Launch]:
    tokens, pairs = op.x.shape[0], product(op.indices.shape)
    shared_up, shared_down, gate = shared_operands(op)
    ups, downs = (op.up[0], op.up_bias, *shared_up[:1]), (op.down[0], op.down_bias, shared_down)
    given = (op.indices, op.weights, op.x, *ups, *downs, gate, op.y)
    buffers = [v for v in given if v is not None]
    rows = [layouts.layout(v).row_stride(v.shape) for v in (op.x, op.y, gate) if v is not None]
    strides = [s for s in rows if s is not None]
    fields = {field.name: getattr(mixture, field.name) for field in dataclasses.fields(mixture)}
    kernel = ExpertsKernel(**fields, steady=layouts.batch_invariant)

    def launch(part: Part, columns: int, when: When = None, form: Form | None = None) -> Launch:
        scratch = Scratch(kernel.scratch_bytes(tokens, columns, WORKERS))
        dims = (part.value, columns, tokens, *strides)
        return Launch(kernel, (*buffers, scratch), dims, work_of(op), when, form)

    low, high = bounds(pairs, layouts.func.symbols)
    choices = choose_experts(
        transposed=op.is_down_transposed, least=low, most=high, invariant=layouts.batch_invariant
    )
    launches = [launch(Part.UP, 1)]  # no columns wait in it
    for first, last, columns in choices:
        when = None if len(choices) == 1 else (pairs, first, last)
        form = Form("columns of down at once", str(columns), "pairs of a token and an expert")
        launches.append(launch(Part.DOWN, columns, when, form))
    return launches
