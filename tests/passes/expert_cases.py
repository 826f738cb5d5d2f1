"""Three experts with matrices of their own and the choice of two, and the op that they become."""

from __future__ import annotations

COUNT = 3
TOPK = "%s, %i = topk %l {axis = 1, k = 2}"
ZEROS = "%t0 = full {value = 0.0, shape = (T, 8), dtype = DTYPE}"
BODY = "func @body(%gate: DTYPE[12], %up: DTYPE[12]) { %a = silu %gate %m = mul %a, %up return %m }"
AFTER = [
    TOPK,
    (
        "%t3 = experts %x, %i, %s, [%g0, %u0, %g1, %u1, %g2, %u2], [%d0, %d1, %d2] {"
        f'experts = 3, body = {BODY}, round_bias = false, combine = "in_turn", dtype = DTYPE}}'
    ),
]


def arguments(kinds: str = "") -> str:
    """The arguments: x, logits, and the matrices of each expert; some are pinned or tied."""
    found = ["%x: DTYPE[T, 8]", "%l: DTYPE[T, 3]"]
    for e in range(COUNT):
        found += [
            f'%{name}{e}: DTYPE[{shape}] = param "experts.{e}.{name}"{kinds if e == 1 else ""}'
            for name, shape in (("g", "12, 8"), ("u", "12, 8"), ("d", "8, 12"))
        ]
    return ", ".join(found)
