"""Norm and rotation of the q and k of one attention in one op."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fuseline.ir.core import Func, Op, Value
from fuseline.ir.ops.fused import QkNormRope
from fuseline.ir.ops.raised import RmsNorm, Rope
from fuseline.passes.dependence import depends
from fuseline.passes.qk_chain import Chain, Norm, Table, table, without_rope
from fuseline.passes.qk_pair import ROOTS, chains
from fuseline.passes.rewrite import NoMatch, Replace, Rewrite, failed
from fuseline.passes.wording import called

_ROPE_FIELDS = ("style", "table", "start", "width", "sign", "round")
_HELD = ("q and k of one attention", "both are treated alike", "nothing else reads between")
_NORM_FIELDS = ("eps", "offset", "cast")


@dataclass(frozen=True)
class FuseQkNorm(Rewrite[Op], root=ROOTS, pattern="qk_norm"):
    """Join the norms, and the rotations where there are any, of one attention's q and k.

    The norms may run over a head or over all heads of a token, before or after the rotation; q
    and k may differ in width. Both must be treated alike, and nothing else may read what lies
    between. Where the attention is no op of the func, rotations by the same tables are a pair.

    With ``rope=false`` the rotations are left as they are, for ``fuse-qk-rope`` or for nobody.

    Before:
        func @f(%q: bf16[2, S, 4, 8], %k: bf16[2, S, 2, 8], %v: bf16[2, 2, S, 8], %qw: bf16[8],
                %kw: bf16[8], %cos: bf16[1, S, 8], %sin: bf16[1, S, 8]) {
          %qn = rms_norm %q, %qw {eps = 1e-06}
          %qt = permute %qn {dims = (0, 2, 1, 3)}
          %c = reshape %cos {shape = (1, 1, S, 8)}
          %s = reshape %sin {shape = (1, 1, S, 8)}
          %qr = rope %qt, %c, %s {width = 8}
          %kn = rms_norm %k, %kw {eps = 1e-06}
          %kt = permute %kn {dims = (0, 2, 1, 3)}
          %kr = rope %kt, %c, %s {width = 8}
          %y = attention %qr, %kr, %v {scale = 0.35, causal = true}
          return %y
        }
    After:
        func @f(%q: bf16[2, S, 4, 8], %k: bf16[2, S, 2, 8], %v: bf16[2, 2, S, 8], %qw: bf16[8],
                %kw: bf16[8], %cos: bf16[1, S, 8], %sin: bf16[1, S, 8]) {
          %qr, %kr = qk_norm_rope %q, %k, %qw, %kw, _, _, %cos, %sin {eps = 1e-06, width = 8}
          %y = attention %qr, %kr, %v {scale = 0.35, causal = true}
          return %y
        }
    """

    rope: bool = True
    """Whether the rotations are taken into the op too."""

    def rewrite(self, op: Op, func: Func) -> Replace | NoMatch | None:
        pair = chains(op, func)
        if pair is None:
            return None
        q, k = pair
        if q.norm is None and k.norm is None:
            modules = [f"each of the {n} heads of {x}" for x, c in (("q", q), ("k", k))
                       if (n := c.separate_norms())]  # fmt: skip
            return NoMatch(f"{' and '.join(modules)} has a norm of its own") if modules else None
        return join(func, q, k) if self.rope else join(func, without_rope(q), without_rope(k))


def join(func: Func, q: Chain, k: Chain) -> Replace | NoMatch:
    """Both chains as one op, or the predicate that fails."""
    missed = failed(
        _HELD[:1],
        (_HELD[1], lambda: _unlike(q, k)),
        ("one op can do either of them", lambda: _unfit(q, "q") or _unfit(k, "k")),
        (_HELD[2], lambda: _shared(func, q, k)),
    )
    if missed is not None:
        return missed
    tables = _tables(q, k)
    if isinstance(tables, str):
        return NoMatch(tables, held=_HELD)
    cos, sin = (t.value() for t in tables) if tables else (None, None)
    fused = QkNormRope(
        q.by_token(),
        k.by_token(),
        _parameter(q.norm, "weight"),
        _parameter(k.norm, "weight"),
        _parameter(q.norm, "bias"),
        _parameter(k.norm, "bias"),
        cos,
        sin,
        **attributes(q),
    )
    makers = [v.owner for v in (q.out, k.out) if v.owner is not None]
    if depends(func, fused.operands, makers):
        return NoMatch("q or k is computed from the other one", held=_HELD)
    return Replace(
        {q.out: fused.q_out, k.out: fused.k_out},
        before=max(makers, key=func.places.__getitem__),
        held=_HELD,
        details=_details(q),
    )


def attributes(q: Chain) -> dict[str, Any]:
    """The attributes of the fused op; those of k are the same."""
    norm, rope = q.norm, q.rope
    found: dict[str, Any] = {"norm": "none", "out": q.layout}
    if norm is not None:
        found["norm"] = "rms" if isinstance(norm, RmsNorm) else "layer"
        found |= {k: v for k, v in norm.attributes.items() if k in _NORM_FIELDS}
        found["scope"] = q.scope
    if rope is not None:
        found |= {k: v for k, v in rope.attributes.items() if k in _ROPE_FIELDS}
    if norm is not None and rope is not None and q.steps[0] is rope:
        found["order"] = "rope_norm"
    return found


def _details(q: Chain) -> dict[str, str]:
    found = {"heads": q.describe()}
    if q.norm is not None:
        found["norm"] = f"{q.norm.name} over each {'head' if q.scope == 'head' else 'token'}"
    return found


def _parameter(norm: Norm | None, name: str) -> Value | None:
    return getattr(norm, name, None)


def _unlike(q: Chain, k: Chain) -> str:
    """How the treatment of q differs from that of k; empty where it does not."""
    if [type(s) for s in q.steps] != [type(s) for s in k.steps]:
        return f"q is {q.describe()}, k is {k.describe()}"
    for mine, other in zip(q.steps, k.steps, strict=True):
        for name, value in mine.attributes.items():
            if value != other.attributes[name]:
                return f"{mine.name} of q has {name} {value}, of k {other.attributes[name]}"
    for name in ("weight", "bias"):
        mine, other = _parameter(q.norm, name), _parameter(k.norm, name)
        if (mine is None) != (other is None):
            has, lacks = ("q", "k") if other is None else ("k", "q")
            value = mine if other is None else other
            assert value is not None, "one of them is there"
            return f"the norm of {has} has a {name} {value.type}, that of {lacks} has none"
    return _unlike_shapes(q, k)


def _unlike_shapes(q: Chain, k: Chain) -> str:
    if q.out.tensor.rank != 4 or k.out.tensor.rank != 4:
        return f"q is {q.out.type}, k is {k.out.type}: not both four dims"
    if q.layout != k.layout or (q.bhsd[0], q.bhsd[2]) != (k.bhsd[0], k.bhsd[2]):
        return f"q is {q.out.type}, k is {k.out.type}: not the same tokens"
    if q.scope != k.scope and None not in (q.scope, k.scope):
        return f"the norm of q runs over a {q.scope}, that of k over a {k.scope}"
    return ""


def _unfit(chain: Chain, name: str) -> str:
    """Why one chain is none that the fused op can do; empty where it is."""
    norm = chain.norm
    for step in chain.steps:
        if step.y.dtype is not step.x.dtype:
            return f"{step.name} turns {name} from {step.x.dtype} into {step.y.dtype}"
    if norm is None:
        return ""
    _, heads, _, width = chain.bhsd
    if chain.scope is None:
        return (
            f"the norm of {name} runs over {norm.x.shape[-1]} elements, which is neither "
            f"a head of {width} nor a token of {heads} heads"
        )
    if chain.scope == "row" and isinstance(chain.steps[0], Rope):
        return f"the norm of {name} runs over all heads after the rotation"
    return _unfit_rows(chain, norm, name)


def _unfit_rows(chain: Chain, norm: Norm, name: str) -> str:
    """Weights with a row per head need the heads to be the dim before the last."""
    for value in (_parameter(norm, "weight"), _parameter(norm, "bias")):
        if value is None or value.tensor.rank < 2:
            continue
        if chain.orders[norm] != "bshd" or value.shape != norm.x.shape[-2:]:
            return f"the norm of {name} has parameters {value.type}, not a row per head"
    return ""


def _shared(func: Func, q: Chain, k: Chain) -> str:
    for label, chain in (("q", q), ("k", k)):
        for value in chain.between:
            if func.use_count(value) != 1:
                return f"{called(value)}, on the way to {label}, is read by others too"
    return ""


def _tables(q: Chain, k: Chain) -> tuple[Table, Table] | str | None:
    """The tables of both rotations, None where there is none, or why they are not the same."""
    if q.rope is None or k.rope is None:
        return None
    found: list[Table] = []
    for name in ("cos", "sin"):
        mine, other = (table(c, getattr(c.rope, name)) for c in (q, k))
        if isinstance(mine, str) or isinstance(other, str):
            return mine if isinstance(mine, str) else str(other)
        if mine != other:
            names = (called(getattr(c.rope, name)) for c in (q, k))
            return f"q and k are rotated by different tables ({name}): {' and '.join(names)}"
        found.append(mine)
    return found[0], found[1]
