"""Recognise attention, and prove what its masks mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias
from weakref import WeakKeyDictionary

from fuseline.ir.core import Func, Op, Trait, Value
from fuseline.ir.ops.matmul import Matmul, Sdpa
from fuseline.ir.ops.raised import Attention
from fuseline.ir.ops.view import Reshape
from fuseline.ir.types import Dim
from fuseline.passes.attention_forms import Form, match_sdpa
from fuseline.passes.attention_softmax import match_softmax
from fuseline.passes.masks.elements import Elements
from fuseline.passes.masks.integers import Unknown
from fuseline.passes.masks.prove import Meaning, Refused, Scores, prove
from fuseline.passes.masks.terms import Applied
from fuseline.passes.rewrite import NoMatch, Replace, Rewrite

_Question: TypeAlias = "tuple[tuple[Applied, ...], Scores, bool]"


@dataclass
class _Known:
    """What was found out about one func: layers share their masks, so the proof is done once."""

    elements: Elements
    meanings: dict[_Question, Meaning | Refused] = field(
        default_factory=dict[_Question, "Meaning | Refused"]
    )


_KNOWN: WeakKeyDictionary[Func, _Known] = WeakKeyDictionary()


@dataclass(frozen=True)
class RaiseAttention(Rewrite[Op], root=(Sdpa, Matmul), pattern="attention"):
    """Raise torch's attention op, and the spelled-out softmax form, to ``attention``.

    Repeated key and value heads become grouped ones. What the mask means is proven from how it is
    built (`fuseline.passes.masks`): causal, sliding, or bounded by the cache position become
    attributes and the ``positions`` operand; only what is not proven stays a mask, with the reason
    in the site's details.

    Before:
        func @f(%q: f32[B, 4, S, 8], %k: f32[B, 2, S, 8], %v: f32[B, 2, S, 8]) {
          %k1 = reshape %k {shape = (B, 2, 1, S, 8)}
          %k2 = expand %k1 {shape = (B, 2, 2, S, 8)}
          %k3 = reshape %k2 {shape = (B, 4, S, 8)}
          %v1 = reshape %v {shape = (B, 2, 1, S, 8)}
          %v2 = expand %v1 {shape = (B, 2, 2, S, 8)}
          %v3 = reshape %v2 {shape = (B, 4, S, 8)}
          %i = iota {length = S}
          %row = reshape %i {shape = (S, 1)}
          %see = le %i, %row
          %y = sdpa %q, %k3, %v3, %see {scale = 0.25}
          return %y
        }
    After:
        func @f(%q: f32[B, 4, S, 8], %k: f32[B, 2, S, 8], %v: f32[B, 2, S, 8]) {
          %y = attention %q, %k, %v {scale = 0.25, causal = true}
          return %y
        }
    """

    reorders: ClassVar[bool] = True

    def rewrite(self, op: Op, func: Func) -> Replace | NoMatch | None:
        known = _KNOWN.get(func)
        if known is None:
            known = _KNOWN[func] = _Known(Elements(func))
        try:
            form = _form(op, func, known)
            return _raised(op, func, form, known) if isinstance(form, Form) else form
        except Unknown as size:
            return NoMatch(f"nothing can be proven of a size: {size}")


def _form(op: Op, func: Func, known: _Known) -> Form | NoMatch | None:
    """The op as a form of attention; None for a product that is no part of one."""
    if isinstance(op, Sdpa):
        return match_sdpa(op, known.elements)
    return match_softmax(op, func, known.elements) if isinstance(op, Matmul) else None


def _raised(op: Op, func: Func, form: Form, known: _Known) -> Replace | NoMatch:
    problem = _misfit(form)
    if problem:
        return NoMatch(problem)
    meaning = _meaning(func, form, known)
    if isinstance(meaning, Refused):
        return NoMatch(meaning.reason)
    made = Attention(
        form.q,
        form.k,
        form.v,
        meaning.mask,
        meaning.positions,
        form.sinks,
        scale=form.scale,
        causal=meaning.causal or form.causal,
        window=meaning.window,
        softcap=form.softcap,
    )
    old = op.results[0]
    new = made.y if made.y.shape == old.shape else Reshape(made.y, shape=old.shape).y
    return Replace({old: new}, held=meaning.held, details=_details(op, made, meaning))


def _misfit(form: Form) -> str:
    """Why the operands do not fit the op; empty where they do."""
    q, k, v = form.q, form.k, form.v
    if not q.shape[0] == k.shape[0] == v.shape[0]:
        return f"q {q.type}, k {k.type} and v {v.type} differ in their batch"
    heads, groups = q.shape[1], k.shape[1]
    if k.shape[1] != v.shape[1] or k.shape[2] != v.shape[2]:
        return f"k {k.type} and v {v.type} differ in heads or length"
    grouped = isinstance(heads, int) and isinstance(groups, int) and heads % groups == 0
    if not grouped and heads != groups:
        return f"{heads} query heads are not a multiple of {groups} key heads"
    return ""


def _meaning(func: Func, form: Form, known: _Known) -> Meaning | Refused:
    """What the masks mean, as it was proven for an earlier layer if they are the same."""
    if not form.masks:
        return Meaning()
    keys: Dim = form.k.shape[2]
    scores = Scores(form.q.shape[0], form.q.shape[1], form.q.shape[2], keys)
    question = (form.masks, scores, form.sinks is not None)
    answer = known.meanings.get(question)
    if answer is None or (isinstance(answer, Meaning) and not _usable(answer, func)):
        answer = prove(func, form.masks, scores, sinks=form.sinks is not None)
        known.meanings[question] = answer
    return answer


def _usable(meaning: Meaning, func: Func) -> bool:
    return all(_reachable(v, func, 8) for v in meaning.values())


def _reachable(value: Value, func: Func, depth: int) -> bool:
    """Whether a value is in the func, or can be made there from values that are."""
    op = value.owner
    if op is None or op in func:
        return True
    if not depth or not op.has(Trait.PURE):
        return False
    return all(_reachable(v, func, depth - 1) for v in op.operands)


def _details(op: Op, made: Attention, meaning: Meaning) -> dict[str, str]:
    limits = [
        *(["causal"] if made.causal else []),
        *([f"window {made.window}"] if made.window is not None else []),
    ]
    mask = ", ".join([*limits, *meaning.details.values()]) or "none"
    heads = f"{made.q.shape[1]} over {made.k.shape[1]}"
    spelled = "torch's op" if isinstance(op, Sdpa) else "spelled out"
    return {"form": spelled, "heads": heads, "mask": mask}
