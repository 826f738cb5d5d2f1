"""One strategy per declared op: a func with random small operands, and the op on them.

A case draws extents, some of which become symbols of the func, and element types that the op's
reference takes. `CASES` maps an op's name to the function that builds it, in one of the modules of
`tests.ir.cases`; an op without an entry fails ``test_every_op_has_a_case``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.ir.cases import (
    adapters,
    elementwise,
    experts,
    index,
    latent,
    norms,
    products,
    reduce,
    views,
)
from tests.ir.cases.base import CASES, EXTENTS, Case

FAMILIES = (adapters, elementwise, experts, index, latent, norms, products, reduce, views)
"""Importing them registers their cases."""


@st.composite
def op_cases(draw: Callable[[st.SearchStrategy[Any]], Any], name: str) -> Case:
    """A func whose only op is the named one, its results returned, with arguments for it."""
    made = Case(draw)
    wide = [e for e in EXTENTS if e > 1]
    made.symbolic = draw(st.frozensets(st.sampled_from(wide), max_size=2))
    op = made.func.append(CASES[name](made))
    made.func.set_returns(op.results)
    return made
