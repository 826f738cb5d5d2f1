"""The router of a mixture of experts: scores, selection and weights in one kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fuseline.codegen.cpu.cpp import CPP_TYPES
from fuseline.codegen.cpu.norm import float_literal
from fuseline.codegen.kernel import KernelTemplate
from fuseline.codegen.norms import promote
from fuseline.ir.ops.experts import GroupScore, Normalize, Score


def _literal(value: float) -> str:
    if math.isfinite(value):
        return float_literal(value)
    return (
        '__builtin_nanf("")' if math.isnan(value) else f"{value}".replace("inf", "__builtin_inff()")
    )


@dataclass(frozen=True)
class RouteKernel(KernelTemplate, template="cpp/route.cpp.jinja"):
    """The ``k`` experts of each row of logits ``[rows, experts]`` and their weights (see `Route`).

    ``logits``, ``dtype`` (of the scores), ``correction`` (None without one) and ``weight_dtype``
    are f32, bf16 or f16. Rows of logits begin at multiples of ``logits_step``; the rest is dense.
    """

    logits: str
    experts: int
    k: int
    score: Score = "softmax"
    dtype: str = "f32"
    correction: str | None = None
    groups: int = 1
    top_groups: int = 1
    group_score: GroupScore = "max"
    group_fill: float = -math.inf
    ordered: bool = True
    selected: bool = False
    normalize: Normalize = "none"
    eps: float = 0.0
    floor: float | None = None
    scale: float = 1.0
    weight_dtype: str = "f32"

    @property
    def buffers(self) -> tuple[str, ...]:
        """The names of ``buf``, in order."""
        return ("logits", *["correction"] * (self.correction is not None), "weights", "indices")

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of ``dim``, in order."""
        return ("rows", "logits_step")

    @property
    def title(self) -> str:
        """What the kernel does, for the head of its source."""
        return f"The best {self.k} of {self.experts} experts by {self.score} of {self.logits}"

    @property
    def choice(self) -> str:
        """The dtype of what is compared."""
        return promote(self.dtype, self.correction) if self.correction else self.dtype

    @property
    def copies(self) -> bool:
        """Whether what is compared differs from the scores that the weights are made of."""
        masked = self.groups > 1 and self.top_groups < self.groups
        return self.correction is not None or (masked and not self.selected)

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
