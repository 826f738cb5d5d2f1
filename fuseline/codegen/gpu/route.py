"""The router of a mixture of experts in Triton: scores, selection and weights in one kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fuseline.codegen.gpu.kernel import TL_TYPES, TritonKernel, next_power_of_two
from fuseline.codegen.gpu.scalar import SHORT, functions
from fuseline.codegen.routers import Router
from fuseline.ir.types import DType


def float_text(value: float, dtype: str = "f32") -> str:
    """A number as Triton reads it, rounded to a dtype."""
    rounded = torch.tensor(value, dtype=DType(dtype).torch).item()
    return repr(rounded) if math.isfinite(rounded) else f'float("{rounded}")'


@dataclass(frozen=True)
class RouteKernel(Router, TritonKernel, template="triton/route.py.jinja"):
    """A router; a block takes ``block_tokens`` rows of logits, and holds all their experts.

    Rows of logits begin at multiples of ``logits_step``; the rest is dense. The columns of a block
    are the experts, with ``pad`` of them for each group, a power of two.
    """

    varies = ""

    block_tokens: int = 1

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Name and element type of each pointer argument."""
        correction = [("correction", self.correction)] if self.correction else []
        results = (("weights", self.weight_dtype), ("indices", "i64"))
        return (("logits", self.logits), *correction, *results)

    @property
    def dims(self) -> tuple[tuple[str, str], ...]:
        """Name and type of each integer argument."""
        return (("rows", "i32"), ("logits_step", "i64"))

    @property
    def parts(self) -> int:
        """Groups that are told apart."""
        return self.groups if self.masked else 1

    @property
    def width(self) -> int:
        """Experts of a group."""
        return self.experts // self.parts

    @property
    def pad(self) -> int:
        """Columns of a group."""
        return next_power_of_two(self.width)

    @property
    def pad_parts(self) -> int:
        """Groups that a block has columns for."""
        return next_power_of_two(self.parts)

    @property
    def columns(self) -> int:
        """Columns of a block."""
        return self.pad * self.pad_parts

    @property
    def slots(self) -> int:
        """The power of two that holds the chosen experts of a token."""
        return next_power_of_two(self.k)

    @property
    def score_type(self) -> str:
        """The type that the scores are rounded to."""
        return TL_TYPES[self.dtype]

    @property
    def choice_type(self) -> str:
        """The type that what is compared is rounded to."""
        return TL_TYPES[self.choice]

    @property
    def weight_type(self) -> str:
        """The type that weights are rounded to while they are normalized."""
        return self.choice_type if self.selected else self.score_type

    @property
    def short_scores(self) -> bool:
        """Whether scores have 16 bits."""
        return self.dtype in SHORT

    @property
    def short_weights(self) -> bool:
        """Whether weights have 16 bits while they are normalized."""
        return (self.choice if self.selected else self.dtype) in SHORT

    @property
    def functions(self) -> tuple[str, ...]:
        """What is called of `_math.py.jinja`."""
        called = {"softmax": "fl_exp", "sigmoid": "fl_sigmoid", "sqrt_softplus": "fl_softplus"}
        return functions([called.get(word, "") for word in (self.score, self.normalize)])

    @property
    def out_type(self) -> str:
        """The type of the weights that are stored."""
        return TL_TYPES[self.weight_dtype]

    @property
    def fill_text(self) -> str:
        """What is compared of experts in groups that are left out."""
        return float_text(self.group_fill, self.choice)

    @property
    def floor_text(self) -> str:
        """The least sum, empty without one."""
        kind = self.choice if self.selected else self.dtype
        return "" if self.floor is None else float_text(self.floor, kind)

    @property
    def eps_text(self) -> str:
        """What is added to the sum."""
        return float_text(self.eps)

    @property
    def scale_text(self) -> str:
        """What the weights are multiplied by."""
        return float_text(self.scale)
