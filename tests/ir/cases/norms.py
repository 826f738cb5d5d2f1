"""Cases of norms, rotations and MLPs, apart and fused."""

from __future__ import annotations

from typing import Any

from fuseline.ir.core import Op, Value
from tests.ir.cases.base import EXTENTS, FLOATS, Case, case


def norm_attributes(c: Case) -> dict[str, Any]:
    return {"eps": c.one_of([1e-6, 1e-5]), "cast": c.one_of(["before_weight", "last"])}


@case("rms_norm")
def _(c: Case, op: type[Any]) -> Op:
    sizes = c.shape(1)
    x = c.arg(c.one_of(FLOATS), sizes)
    weight = c.maybe(lambda: c.arg(c.one_of(FLOATS), sizes[-1:]))
    return op(x, weight, offset=c.one_of([0.0, 1.0]), **norm_attributes(c))


@case("layer_norm")
def _(c: Case, op: type[Any]) -> Op:
    sizes = c.shape(2)
    x, rows = c.arg(c.one_of(FLOATS), sizes), c.number(1, 2)
    weight, bias = (c.maybe(lambda: c.arg(c.one_of(FLOATS), sizes[-rows:])) for _ in range(2))
    return op(x, weight, bias, **norm_attributes(c))


def _rope_attributes(c: Case, head: int) -> dict[str, Any]:
    width = c.one_of([w for w in (2, 4, 6) if w <= head])
    return {
        "style": c.one_of(["half", "interleaved", "deinterleave"]),
        "table": c.one_of(["full", "half"]),
        "start": c.number(0, head - width),
        "width": width,
        "sign": c.one_of([1, -1]),
        "round": c.flag(),
    }


def _table_columns(attributes: dict[str, Any]) -> int:
    width: int = attributes["width"]
    return width if attributes["table"] == "full" else width // 2


@case("rope")
def _(c: Case, op: type[Any]) -> Op:
    b, s, h = c.shape(3, 3)
    dtype, head = c.one_of(FLOATS), c.one_of([2, 4, 6, 8])
    attributes = _rope_attributes(c, head)
    columns = _table_columns(attributes)
    cos, sin = (c.arg(dtype, [1 if c.flag() else b, s, 1, columns], static=1) for _ in range(2))
    return op(c.arg(dtype, [b, s, h, head], static=1), cos, sin, **attributes)


def _gate_and_up(c: Case) -> tuple[list[Value], list[Value | None], int]:
    """x, gate, up; their biases; and the width between."""
    dtype, k, n = c.one_of(FLOATS), c.one_of(EXTENTS), c.one_of(EXTENTS)
    x = c.arg(dtype, [*c.shape(), k])
    weights = [c.arg(dtype, [n, k]) for _ in range(2)]
    return [x, *weights], [c.maybe(lambda: c.arg(dtype, [n])) for _ in range(2)], n


_ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")


@case("gated_mlp")
def _(c: Case, op: type[Any]) -> Op:
    values, biases, n = _gate_and_up(c)
    out = c.one_of(EXTENTS)
    down = c.arg(values[0].dtype, [out, n])
    last = c.maybe(lambda: c.arg(values[0].dtype, [out]))
    return op(*values, down, *biases, last, activation=c.one_of(_ACTIVATIONS))


@case("gated_linear")
def _(c: Case, op: type[Any]) -> Op:
    values, biases, _ = _gate_and_up(c)
    return op(*values, *biases, activation=c.one_of(_ACTIVATIONS))


@case("merged_linear")
def _(c: Case, op: type[Any]) -> Op:
    dtype, k = c.one_of(FLOATS), c.one_of(EXTENTS)
    x = c.arg(dtype, [*c.shape(), k])
    widths = c.shape(1, 3)
    weights = [c.arg(dtype, [n, k]) for n in widths]
    return op(x, weights, [c.arg(dtype, [n]) for n in widths] if c.flag() else [])


@case("norm_linear")
def _(c: Case, op: type[Any]) -> Op:
    dtype, k = c.one_of(FLOATS), c.one_of(EXTENTS)
    sizes = [*c.shape(), k]
    rows = [c.arg(dtype, sizes), c.maybe(lambda: c.arg(dtype, sizes))]
    scale = c.maybe(lambda: c.arg(dtype, [k]))
    gated = c.flag()
    widths = 2 * [c.one_of(EXTENTS)] if gated else c.shape(1, 3)
    weights = [c.arg(dtype, [n, k]) for n in widths]
    biases = [c.arg(dtype, [n]) for n in widths] if c.flag() else []
    activation = c.one_of(_ACTIVATIONS) if gated else None
    attributes = norm_attributes(c) | {"offset": c.one_of([0.0, 1.0]), "activation": activation}
    return op(*rows, scale, weights, biases, **attributes)


@case("wide_linear")
def _(c: Case, op: type[Any]) -> Op:
    narrow = FLOATS[1:]
    dtype, k, n = c.one_of(narrow), c.one_of(EXTENTS), c.one_of(EXTENTS)
    x = c.arg(c.one_of(narrow), [*c.shape(), k])
    return op(x, c.arg(dtype, [n, k]), c.maybe(lambda: c.arg(dtype, [n])))


@case("linear_add")
def _(c: Case, op: type[Any]) -> Op:
    dtype, k, n, lead = c.one_of(FLOATS), c.one_of(EXTENTS), c.one_of(EXTENTS), c.shape()
    return op(
        c.arg(dtype, [*lead, k]),
        c.arg(dtype, [n, k]),
        c.arg(dtype, [*lead, n]),
        c.maybe(lambda: c.arg(dtype, [n])),
    )


@case("add_rms_norm")
def _(c: Case, op: type[Any]) -> Op:
    sizes, dtype = c.shape(1), c.one_of(FLOATS)
    weight = c.maybe(lambda: c.arg(c.one_of(FLOATS), sizes[-1:]))
    x, residual = c.arg(dtype, sizes), c.arg(dtype, sizes)
    return op(x, residual, weight, offset=c.one_of([0.0, 1.0]), **norm_attributes(c))


@case("rms_norm_add")
def _(c: Case, op: type[Any]) -> Op:
    sizes, dtype = c.shape(1), c.one_of(FLOATS)
    weight = c.maybe(lambda: c.arg(dtype, sizes[-1:]))
    x, residual = c.arg(dtype, sizes), c.arg(dtype, sizes)
    return op(x, residual, weight, offset=c.one_of([0.0, 1.0]), **norm_attributes(c))


@case("sandwich_norm")
def _(c: Case, op: type[Any]) -> Op:
    sizes, dtype = c.shape(1), c.one_of(FLOATS)
    weights = [c.maybe(lambda: c.arg(dtype, sizes[-1:])) for _ in range(2)]
    x, residual = c.arg(dtype, sizes), c.arg(dtype, sizes)
    attributes = norm_attributes(c) | {f"next_{k}": v for k, v in norm_attributes(c).items()}
    return op(x, residual, *weights, offset=c.one_of([0.0, 1.0]), next_offset=1.0, **attributes)


def _qk(c: Case) -> tuple[dict[str, Any], list[int]]:
    """The shared fields of the QK norm ops, and B, S, H, Hk, D."""
    dtype, d = c.one_of(FLOATS), c.one_of([2, 4, 6])
    b, s, h, hk = c.shape(4, 4)
    norm, scope = c.one_of(["rms", "layer", "none"]), c.one_of(["head", "row"])
    attributes = _rope_attributes(c, d) | norm_attributes(c)
    attributes |= {"norm": norm, "scope": scope, "order": c.one_of(["norm_rope", "rope_norm"])}
    attributes["out"] = c.one_of(["bshd", "bhsd"])
    fields = {"q": c.arg(dtype, [b, s, h, d], static=2), "k": c.arg(dtype, [b, s, hk, d], static=2)}
    if norm != "none" and c.flag():
        for name, heads in (("q", h), ("k", hk)):
            width = heads * d if scope == "row" else d
            fields[f"{name}_weight"] = c.arg(dtype, [width])
            if norm == "layer":
                fields[f"{name}_bias"] = c.arg(dtype, [width])
    if c.flag():
        columns = _table_columns(attributes)
        for name in ("cos", "sin"):
            fields[name] = c.arg(dtype, [b, s, columns], static=1)
    return fields | attributes, [b, s, h, hk, d]


@case("qk_norm_rope")
def _(c: Case, op: type[Any]) -> Op:
    fields, _ = _qk(c)
    return op(**fields)


@case("qk_norm_rope_write")
def _(c: Case, op: type[Any]) -> Op:
    fields, (b, s, _, hk, d) = _qk(c)
    dtype, dv, longest = fields["q"].dtype, c.one_of(EXTENTS), 7
    return op(
        **fields,
        v=c.arg(dtype, [b, s, hk, dv], static=2),
        index=c.distinct(s, longest),
        k_cache=c.arg(dtype, [b, hk, longest, d], static=3, buffer=True),
        v_cache=c.arg(dtype, [b, hk, longest, dv], static=3, buffer=True),
    )


@case("merged_rows")
def _(c: Case, op: type[Any]) -> Op:
    dtype, (b, s) = c.one_of(FLOATS), c.shape(2, 2)
    norms, head = c.number(0, 3), c.one_of([2, 4, 6, 8])
    turned = c.number(0 if norms else 1, 2)
    widths = [c.one_of(EXTENTS) for _ in range(norms)]
    heavy, weighted = c.one_of(FLOATS), c.flag()
    rope = _rope_attributes(c, head) if turned else {}
    tables = [
        c.arg(dtype, [1 if c.flag() else b, s, _table_columns(rope)], static=1) if turned else None
        for _ in range(2)
    ]
    return op(
        [c.arg(dtype, [b, s, w], static=1) for w in widths],
        [c.arg(heavy, [w], static=1) for w in widths] if weighted else [],
        [c.arg(dtype, [b, s, head], static=1) for _ in range(turned)],
        *tables,
        offset=c.one_of([0.0, 1.0]),
        **norm_attributes(c),
        **rope,
    )
