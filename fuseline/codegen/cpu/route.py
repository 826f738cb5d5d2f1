"""The router of a mixture of experts: scores, selection and weights in one kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fuseline.codegen.cpu.cpp import CPP_TYPES
from fuseline.codegen.cpu.norm import float_literal
from fuseline.codegen.kernel import KernelTemplate
from fuseline.codegen.routers import Router


def _literal(value: float) -> str:
    if math.isfinite(value):
        return float_literal(value)
    return (
        '__builtin_nanf("")' if math.isnan(value) else f"{value}".replace("inf", "__builtin_inff()")
    )


@dataclass(frozen=True)
class RouteKernel(Router, KernelTemplate, template="cpp/route.cpp.jinja"):
    """A router; rows of logits begin at multiples of ``logits_step``, the rest is dense."""

    varies = ""

    @property
    def buffers(self) -> tuple[str, ...]:
        """The names of ``buf``, in order."""
        return ("logits", *["correction"] * (self.correction is not None), "weights", "indices")

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of ``dim``, in order."""
        return ("rows", "logits_step")

    @property
    def score_expression(self) -> str:
        """The score of ``x[e]``, the last op of it left to round."""
        return {
            "softmax": "x[e]",
            "sigmoid": "fl_sigmoid(x[e])",
            "sqrt_softplus": "__builtin_sqrtf(fl_round<S>(fl_softplus(x[e])))",
        }.get(self.score, "")

    @property
    def logits_type(self) -> str:
        """The C++ type of the logits."""
        return CPP_TYPES[self.logits]

    @property
    def score_type(self) -> str:
        """The C++ type that the scores are rounded to."""
        return CPP_TYPES[self.dtype]

    @property
    def correction_type(self) -> str:
        """The C++ type of the correction, empty without one."""
        return CPP_TYPES.get(self.correction or "", "")

    @property
    def choice_type(self) -> str:
        """The C++ type that what is compared is rounded to."""
        return CPP_TYPES[self.choice]

    @property
    def weight_type(self) -> str:
        """The C++ type that weights are rounded to while they are normalized."""
        return self.choice_type if self.selected else self.score_type

    @property
    def out_type(self) -> str:
        """The C++ type of the weights that are stored."""
        return CPP_TYPES[self.weight_dtype]

    @property
    def group_fill_literal(self) -> str:
        """``group_fill`` in C++."""
        return _literal(self.group_fill)

    @property
    def eps_literal(self) -> str:
        """``eps`` in C++."""
        return _literal(self.eps)

    @property
    def floor_literal(self) -> str:
        """``floor`` in C++, empty without one."""
        return "" if self.floor is None else _literal(self.floor)

    @property
    def scale_literal(self) -> str:
        """``scale`` in C++."""
        return _literal(self.scale)
