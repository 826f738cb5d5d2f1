"""What stands before attention over a latent, in one op; the attention's site then holds it all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fuseline.ir.core import Func, Op, Value
from fuseline.ir.ops.buffer import IndexWrite
from fuseline.ir.ops.fused import MergedLinear
from fuseline.ir.ops.latent import LatentAttention
from fuseline.ir.ops.mla_projection import MlaProjection, MlaProjectionWrite
from fuseline.ir.ops.raised import Attention, Rope
from fuseline.ir.ops.view import Reshape
from fuseline.ir.types import same
from fuseline.passes.dependence import depends
from fuseline.passes.fuse_cache_write import meeting_place
from fuseline.passes.latent_details import Latents, latent_details, product_behind
from fuseline.passes.latent_forms import Expanded, expanded_writes
from fuseline.passes.latent_rows import (
    Refused,
    Row,
    cache_write,
    latent_row,
    only_written,
    query_row,
    shared_row,
    write_behind,
)
from fuseline.passes.masks.elements import Elements
from fuseline.passes.masks.integers import Unknown
from fuseline.passes.qk_chain import table
from fuseline.passes.raise_latent_attention import is_compressed, is_latent
from fuseline.passes.rewrite import Replace, Rewrite
from fuseline.passes.wording import name_of

_NORM = ("eps", "offset", "cast")
_ROPE = ("style", "table", "start", "width", "sign", "round")


@dataclass(frozen=True)
class FuseMla(Rewrite[Op], root=(LatentAttention, Attention), pattern="mla"):
    """Norm the latents of keys and queries and rotate the shared key in one op, into the caches.

    Each row is taken if it can be; those that are not stay as they are, with the reason in the
    site's details. Into the caches they go where nothing else reads them. The products and q's
    rotation stay ops of their own, and belong to the site. Attention over caches of keys and values
    that are expanded from a latent before they are written has the same rows.

    Before:
        func @f(%q: f32[2, 4, S, 9], %kv: f32[2, S, 18], %n: f32[14], %cos: f32[1, 1, S, 4],
                %sin: f32[1, 1, S, 4], %w: f32[48, 14] = param "kv_b") {
          %c = slice %kv {axis = 2, stop = 14}
          %r = slice %kv {axis = 2, start = 14, stop = 18}
          %cn = rms_norm %c, %n
          %ch = reshape %cn {shape = (2, 1, S, 14)}
          %rh = reshape %r {shape = (2, 1, S, 4)}
          %rr = rope %rh, %cos, %sin {width = 4}
          %y = latent_attention %q, %ch, %w, %rr {key = 5, value = 7, scale = 0.4, causal = true}
          return %y
        }
    After:
        func @f(%q: f32[2, 4, S, 9], %kv: f32[2, S, 18], %n: f32[14], %cos: f32[1, 1, S, 4],
                %sin: f32[1, 1, S, 4], %w: f32[48, 14] = param "kv_b") {
          %c = slice %kv {axis = 2, stop = 14}
          %r = slice %kv {axis = 2, start = 14, stop = 18}
          %cs = reshape %cos {shape = (1, S, 4)}
          %sn = reshape %sin {shape = (1, S, 4)}
          %cn, %rr = mla_projection %c, %r, _, %n, _, %cs, %sn {width = 4}
          %ch = reshape %cn {shape = (2, 1, S, 14)}
          %rh = reshape %rr {shape = (2, 1, S, 4)}
          %y = latent_attention %q, %ch, %w, %rh {key = 5, value = 7, scale = 0.4, causal = true}
          return %y
        }
    """

    def rewrite(self, op: Op, func: Func) -> Replace | None:
        site = _site(op, func)
        if site is None:
            return None
        rows = _rows(func, site.of)
        if not any(r.works for r in (rows.latent, rows.shared) if r is not None):
            return None  # nothing to do, or done
        change = _written(func, site.of, rows) or _computed(func, rows)
        return None if change is None else _whole_site(func, op, site, rows, change)


@dataclass(frozen=True)
class _Site:
    """What an attention is over, and what the site says of it."""

    of: Latents
    details: dict[str, str]


def _site(op: Op, func: Func) -> _Site | None:
    if isinstance(op, LatentAttention):
        of = Latents.of(op)
        return _Site(of, latent_details(of))
    assert isinstance(op, Attention), "the other root"
    return _over_expanded(op, func)


def _over_expanded(op: Attention, func: Func) -> _Site | None:
    """Attention over caches of keys and values, both expanded from one latent."""
    writes = [write_behind(func, value) for value in (op.k, op.v)]
    keys, values = writes
    if keys is None or values is None or keys.src.shape[:3] != values.src.shape[:3]:
        return None
    if keys.src.tensor.rank != 4 or values.src.tensor.rank != 4:
        return None
    try:
        found = expanded_writes(keys, values, Elements(func))
    except Unknown:
        return None  # a size that index arithmetic cannot hold: not a product's columns
    groups = keys.src.shape[1]
    if not isinstance(found, Expanded) or not isinstance(groups, int) or not is_latent(found, func):
        return None
    if found.shared is None and not is_compressed(found.latent):
        return None  # an encoder's states, for one
    shared = found.shared and found.shared.value
    of = Latents(op.q, found.latent, shared, groups, found.keys.width, found.values.width)
    names = f"{name_of(keys.buffer)} and {name_of(values.buffer)}"
    return _Site(of, latent_details(of) | {"cache": f"expanded keys and values, in {names}"})


@dataclass(frozen=True)
class _Rows:
    """The rows that can be taken, and why others cannot."""

    latent: Row | None
    shared: Row | None
    q: Row | None
    tables: tuple[Value, Value] | None
    refused: tuple[str, ...]


def _rows(func: Func, of: Latents) -> _Rows:
    found = [latent_row(func, of.latent), shared_row(func, of.shared)]
    latent, shared = (r if isinstance(r, Row) else None for r in found)
    refused = [r.reason for r in found if isinstance(r, Refused)]
    tables = _tables(shared)
    if isinstance(tables, str):
        refused.append(tables)
        shared, tables = None, None
    first = latent or shared
    q = None if first is None else query_row(of.q, first.source.shape[:2])
    reason = q.reason if isinstance(q, Refused) else _unlike(latent, q)
    if reason:
        refused.append(reason)
        q = None
    return _Rows(latent, shared, q if isinstance(q, Row) else None, tables, tuple(refused))


def _tables(shared: Row | None) -> tuple[Value, Value] | str | None:
    """The tables of the rotation as ``[B | 1, S, W]``, or why they are none."""
    if shared is None or shared.rope is None or shared.chain is None:
        return None
    found: list[Value] = []
    for value in (shared.rope.cos, shared.rope.sin):
        made = table(shared.chain, value)
        if isinstance(made, str):
            return made
        found.append(made.value())
    return found[0], found[1]


def _unlike(latent: Row | None, q: Row | None) -> str:
    """How the norm of q's latent differs from that of the latent; empty where it does not."""
    if latent is None or latent.norm is None or q is None or q.norm is None:
        return ""
    if latent.source.dtype is not q.source.dtype:
        return f"q's latent is of {q.source.dtype}, the latent of {latent.source.dtype}"
    for name in _NORM:
        mine, other = q.norm.attributes[name], latent.norm.attributes[name]
        if mine != other:
            return f"the norm of q's latent has {name} {mine}, that of the latent {other}"
    return ""


def _fields(latent: Row | None, shared: Row | None, q: Row | None, rows: _Rows) -> dict[str, Any]:
    """The operands and attributes of the op over some rows."""
    fields: dict[str, Any] = {
        "latent": latent and latent.source,
        "shared": shared and shared.source,
        "q": q and q.source,
        "latent_weight": latent and latent.norm and latent.norm.weight,
        "q_weight": q and q.norm and q.norm.weight,
    }
    norms = [r.norm for r in (latent, q) if r is not None and r.norm is not None]
    if norms:
        fields |= {name: norms[0].attributes[name] for name in _NORM}
    if latent is not None:
        fields |= {"norm": latent.norm is not None, "scale": latent.scale}
    if shared is not None and shared.rope is not None and rows.tables is not None:
        fields |= {name: shared.rope.attributes[name] for name in _ROPE}
        fields |= {"cos": rows.tables[0], "sin": rows.tables[1]}
    return fields


def _computed(func: Func, rows: _Rows) -> Replace | None:
    """The rows that something is done to, as results."""
    working = [r if r is not None and r.works else None for r in (rows.latent, rows.shared, rows.q)]
    for latent, shared, q in (working, [*working[:2], None]):
        fused = MlaProjection(**_fields(latent, shared, q, rows))
        taken = [r for r in (latent, shared, q) if r is not None]
        makers = [r.value.owner for r in taken if r.value.owner is not None]
        if not depends(func, fused.operands, makers):
            values = {r.value: _shaped(y, r) for r, y in zip(taken, fused.ys, strict=True)}
            last = max(makers, key=func.places.__getitem__)
            return Replace(values, before=last, held=("rows of the same tokens",))
    return None


def _written(func: Func, of: Latents, rows: _Rows) -> Replace | None:
    """The rows as they are written to their caches; None where they are not, or are read before."""
    latent, shared = rows.latent, rows.shared
    if latent is None or (shared is None) != (of.shared is None):
        return None
    writes = [cache_write(func, of.latent)]
    writes += [] if shared is None else [cache_write(func, of.shared)]
    found = [w for w in writes if w is not None]
    taken = [r for r in (latent, shared) if r is not None]
    if len(found) != len(taken) or any(w.index is not found[0].index for w in found):
        return None
    if not all(only_written(func, r, w) for r, w in zip(taken, found, strict=True)):
        return None
    if not same(found[0].buffer.shape[-2], found[-1].buffer.shape[-2]):
        return None  # one index is held against one length
    before = meeting_place(func, func.places, found[0], found[-1])
    return None if before is None else _replaced_writes(func, rows, found, before)


def _replaced_writes(
    func: Func, rows: _Rows, writes: list[IndexWrite], before: Op
) -> Replace | None:
    buffers = [w.buffer for w in writes]
    place = func.places
    later = [u for b in buffers for u in func.users(b) if place[u] > place[before]]
    later = [u for u in later if u not in writes]
    for q in (rows.q, None):
        fused = MlaProjectionWrite(
            **_fields(rows.latent, rows.shared, q, rows),
            index=writes[0].index,
            latent_cache=buffers[0],
            shared_cache=buffers[1] if len(buffers) > 1 else None,
        )
        makers = [] if q is None or q.value.owner is None else [q.value.owner]
        if not depends(func, fused.operands, [*later, *makers]):
            values = {} if q is None else {q.value: _shaped(fused.ys[0], q)}
            held = ("rows of the same tokens", "only the cache writes read the keys' rows")
            return Replace(values, ops=(fused,), erase=writes, before=before, held=held)
    return None


def _shaped(y: Value, row: Row) -> Value:
    return y if y.shape == row.value.shape else Reshape(y, shape=row.value.shape).y


def _whole_site(func: Func, op: Op, site: _Site, rows: _Rows, change: Replace) -> Replace:
    """The change, with the ops that belong to the site put in anew, so that it holds theirs."""
    values = dict(change.values)
    for part in (*_parts(site.of, rows), op):
        if part in func and part not in change.erase:
            twin = part.clone({})
            values |= dict(zip(part.results, twin.results, strict=True))
    return Replace(
        values,
        ops=change.ops,
        erase=change.erase,
        before=change.before,
        held=change.held,
        details=site.details | _details(rows, change),
    )


def _parts(of: Latents, rows: _Rows) -> list[Op]:
    """The merged products that give the rows, and the rotation of q."""
    sources = [r.source for r in (rows.latent, rows.shared, rows.q) if r is not None]
    products = [product_behind(s) for s in sources]
    parts: list[Op] = [p for p in dict.fromkeys(products) if isinstance(p, MergedLinear)]
    return parts + ([of.q.owner] if isinstance(of.q.owner, Rope) else [])


def _details(rows: _Rows, change: Replace) -> dict[str, str]:
    rope = None if rows.shared is None else rows.shared.rope
    details = {"rotation": "none" if rope is None else f"{rope.style}, {rope.width} wide"}
    if change.erase:
        details["rows"] = "written in place"
    if rows.refused:
        details["left out"] = "; ".join(rows.refused)
    return details
