"""What the masks of one attention mean: attributes as far as proven, a tensor for the rest.

Each conjunct of the masks is a condition on the indices ``b, h, q, k``. One that says ``k <= P``
or ``k > P - w``, with P a function of b and q, becomes the attributes ``causal`` and ``window`` and
the operand ``positions`` (P itself); one that always holds is dropped. A term with any other
conjunct stays a tensor, and says why.

Rows that see no key. The `attention` op gives zeros for them, as torch's
``scaled_dot_product_attention`` does. A softmax spelled out gives NaN where hidden scores are
-inf: there ours are zeros too. Where they are finite (``finfo.min``) it gives the mean of *all*
values, hidden ones included: such a mask is only taken apart where every row is proven to see a
key, or where sinks take the weight (then both give zeros); otherwise it stays, numbers to be added.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fuseline.ir.core import Func, Value
from fuseline.ir.ops import buffer, index
from fuseline.ir.types import Dim
from fuseline.passes.masks.build import MaskBuilder, Unbuildable
from fuseline.passes.masks.elements import Elements
from fuseline.passes.masks.expressions import Opaque, as_linear
from fuseline.passes.masks.integers import Linear, Unknown, new_index, of_dim
from fuseline.passes.masks.predicates import AtLeastZero, Condition, conjuncts, indices
from fuseline.passes.masks.terms import Applied, Term, split
from fuseline.passes.wording import called


@dataclass(frozen=True)
class Scores:
    """The dims of the scores: batch, query heads, queries, keys."""

    batch: Dim
    heads: Dim
    queries: Dim
    keys: Dim


@dataclass(frozen=True)
class Meaning:
    """The masks of one attention, as its operands and attributes."""

    mask: Value | None = None
    positions: Value | None = None
    causal: bool = False
    window: int | None = None
    held: tuple[str, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict[str, str])

    def values(self) -> tuple[Value, ...]:
        """The operands."""
        return tuple(v for v in (self.mask, self.positions) if v is not None)


@dataclass(frozen=True)
class Refused:
    """The masks cannot be said in terms of the `attention` op."""

    reason: str


_ABSORBS = -1e30
"""Added to a score, a fill from here down leaves nothing of it in float32."""


@dataclass
class _Limits:
    """``k <= upper`` and ``k >= lower`` by row, and the conditions that are neither."""

    upper: list[tuple[Linear, Condition]] = field(default_factory=list[tuple[Linear, Condition]])
    lower: list[tuple[Linear, Condition]] = field(default_factory=list[tuple[Linear, Condition]])
    other: list[Condition] = field(default_factory=list[Condition])


def prove(
    func: Func, masks: Sequence[Applied], scores: Scores, *, sinks: bool = False
) -> Meaning | Refused:
    """What the masks say together; ``sinks``: another logit takes part, so no row is empty."""
    return _Proof(func, scores).run(masks, sinks)


class _Proof:
    """One proof: its indices, and the elements seen on the way."""

    def __init__(self, func: Func, scores: Scores) -> None:
        self.func = func
        self.scores = scores
        self.elements = Elements(func)
        self.bounds = self.elements.bounds
        self.b = new_index("b", scores.batch)
        self.q = new_index("q", scores.queries)
        self.k = new_index("k", scores.keys)
        self.place = (self.b, new_index("h", scores.heads), self.q, self.k)
        self.build = MaskBuilder(self.elements, self.place, scores.batch, scores.queries)

    def run(self, masks: Sequence[Applied], sinks: bool) -> Meaning | Refused:
        deep = next((m.value for m in masks if m.value.tensor.rank > len(self.place)), None)
        if deep is not None:
            return Refused(f"a mask {deep.type} has more dims than batch, head, query and key")
        terms = [t for m in masks for t in self._split(m)]
        conditions = {t: t.condition(self.elements, self.place) for t in dict.fromkeys(terms)}
        limits = self._limits([c for c in conditions.values() if c is not None])
        meaning, unproven = self._attributes(limits)
        kept = [
            t
            for t, c in conditions.items()
            if c is None or any(part in unproven for part in conjuncts(c))
        ]
        finite = not sinks and any(t.fill > -math.inf for t in terms)
        if finite and (kept or not self._rows_see_a_key(limits)):
            return self._as_numbers(masks, kept, unproven)
        return self._with_rest(meaning, kept, conditions, unproven)

    def _split(self, applied: Applied) -> list[Term]:
        return split(applied, self.elements, self.place)

    # -- what the conditions say --------------------------------------------------------------

    def _limits(self, conditions: Iterable[Condition]) -> _Limits:
        limits = _Limits()
        parts = dict.fromkeys(part for c in conditions for part in conjuncts(c))
        for part in parts:
            self._sort(part, limits)
        return limits

    def _sort(self, part: Condition, limits: _Limits) -> None:
        if isinstance(part, AtLeastZero):
            factor = sum(part.of.coefficient(key) for key, _ in self.k.terms)
            rest = part.of - self.k.times(factor)
            if not rest.indices() - {"b", "q"}:
                if factor == -1:
                    limits.upper.append((rest, part))
                    return
                if factor == 1:
                    limits.lower.append((-rest, part))
                    return
        limits.other.append(part)

    def _attributes(self, limits: _Limits) -> tuple[Meaning, dict[Condition, str]]:
        """The attributes that the limits give, and the conditions that they do not cover."""
        unproven = {c: _why(c) for c in limits.other}
        last = of_dim(self.scores.keys).plus(-1)
        upper = [(u, c) for u, c in limits.upper if not self.bounds.nonnegative(u - last)]
        lower = [(low, c) for low, c in limits.lower if not self.bounds.nonnegative(-low)]
        tight = self._tightest(upper)
        beside = [(u, c) for u, c in upper if tight and not self.bounds.nonnegative(u - tight)]
        unproven |= {c: "a second upper limit" for _, c in beside}
        row = tight if tight is not None else self._row_of_window(limits, lower)
        windows: dict[int, list[Condition]] = {}
        for low, c in lower:
            width = None if row is None else (row - low).plus(1)
            if width is None or not width.is_const or width.const < 1:
                unproven[c] = "a lower limit at no fixed distance from the upper one"
            else:
                windows.setdefault(width.const, []).append(c)
        if row is None or (tight is None and not windows):
            return Meaning(), unproven
        try:
            positions = None if row == self.q else self.build.positions(row)
        except Unbuildable as error:
            covered = [c for _, c in (*upper, *lower)]
            return Meaning(), unproven | {c: str(error) for c in covered}
        window = min(windows, default=None)
        held = [str(c) for u, c in upper if u == tight]
        held += [str(c) for w in windows for c in windows[w]]
        return Meaning(None, positions, tight is not None, window, tuple(held)), unproven

    def _tightest(self, upper: Sequence[tuple[Linear, Condition]]) -> Linear | None:
        """The upper limit that lies below all others; the first one where none does."""
        for candidate, _ in upper:
            if all(self.bounds.nonnegative(other - candidate) for other, _ in upper):
                return candidate
        return upper[0][0] if upper else None

    def _row_of_window(
        self, limits: _Limits, lower: Sequence[tuple[Linear, Condition]]
    ) -> Linear | None:
        """An upper limit that hides nothing, but from which a lower one keeps its distance."""
        for row, _ in limits.upper:
            if any((row - low).is_const for low, _ in lower):
                return row
        return None

    # -- rows that see no key -----------------------------------------------------------------

    def _rows_see_a_key(self, limits: _Limits) -> bool:
        """Whether a key lies within the limits of each row: ``lower <= upper``, both in range."""
        self._add_facts()
        prove_ = self.bounds.nonnegative_by_facts
        last = of_dim(self.scores.keys).plus(-1)
        uppers = [u for u, _ in limits.upper] or [last]
        lowers = [low for low, _ in limits.lower]
        return (
            self.bounds.nonnegative(last)
            and all(prove_(u) for u in uppers)
            and all(prove_(last - low) for low in lowers)
            and all(prove_(u - low) for u in uppers for low in lowers)
        )

    def _add_facts(self) -> None:
        """Places that are written by index lie within what they are written to, or eager fails."""
        for op in self.func.ops:
            if not isinstance(op, (index.IndexCopy, buffer.IndexWrite)):
                continue
            target = op.x if isinstance(op, index.IndexCopy) else op.buffer
            if len(op.index.shape) != 1 or op.index.shape[0] not in (1, self.scores.queries):
                continue
            try:
                at = as_linear(self.elements.at(op.index, (self.q,)))
                end = of_dim(target.shape[op.axis]).plus(-1)
            except (Opaque, Unknown):
                continue
            self.bounds.facts += [at, end - at]

    # -- what stays ---------------------------------------------------------------------------

    def _with_rest(
        self,
        meaning: Meaning,
        kept: Sequence[Term],
        conditions: Mapping[Term, Condition | None],
        unproven: Mapping[Condition, str],
    ) -> Meaning:
        if not kept:
            return meaning
        reasons = [self._reason(t, conditions[t], unproven) for t in kept]
        mask = self.build.mask(kept)
        details = {"mask": "; ".join(dict.fromkeys(reasons))}
        return Meaning(
            mask, meaning.positions, meaning.causal, meaning.window, meaning.held, details
        )

    def _reason(
        self, term: Term, condition: Condition | None, unproven: Mapping[Condition, str]
    ) -> str:
        if condition is None:
            return f"kept: {called(term.value)} holds numbers to add, not a condition"
        parts = [f"{c}: {unproven[c]}" for c in conjuncts(condition) if c in unproven]
        return f"kept: {', '.join(parts)}"

    def _as_numbers(
        self, masks: Sequence[Applied], kept: Sequence[Term], unproven: Mapping[Condition, str]
    ) -> Meaning | Refused:
        """The masks as they were, numbers to add, for a row without a visible key."""
        doubt = "a row may see no key, where a finite fill gives the mean of all values"
        finite = [m for m in masks if any(t.fill > -math.inf for t in self._split(m))]
        if len(finite) > 1:
            return Refused(f"{len(finite)} masks with a finite fill, and {doubt}")
        replaced = [m.fill for m in finite if m.how != "add" and m.fill > _ABSORBS]
        if replaced:
            return Refused(f"scores are replaced by {replaced[0]:g}, and {doubt}")
        reasons = [f"{c}: {why}" for c, why in unproven.items()]
        because = f" ({', '.join(reasons)})" if kept and reasons else ""
        details = {"mask": f"kept whole: {doubt}{because}"}
        return Meaning(mask=self.build.numbers(masks), details=details)


def _why(condition: Condition) -> str:
    names = indices(condition)
    if "h" in names:
        return "depends on the head"
    if "k" not in names:
        return "says nothing of the key"
    return "depends on data or is no limit on the key"
