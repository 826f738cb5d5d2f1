"""What stands before attention over a latent: norms, rotation of the shared key, cache writes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fuseline.ir.core import (
    Cost,
    Op,
    OpError,
    Trait,
    Value,
    attribute,
    optional_operand,
    variadic_result,
)
from fuseline.ir.ops.raised import (
    CastPoint,
    RopeStyle,
    RopeTable,
    rms_norm_reference,
    rope_reference,
)
from fuseline.ir.types import Dim, TensorType, dim, promote, same

_ROPE = ("style", "table", "start", "width", "sign", "round")


class LatentRows(Op):
    """Base of `MlaProjection` and `MlaProjectionWrite`: rows of one token, each done by itself."""

    latent: Value | None = optional_operand()
    shared: Value | None = optional_operand()
    q: Value | None = optional_operand()
    latent_weight: Value | None = optional_operand()
    q_weight: Value | None = optional_operand()
    cos: Value | None = optional_operand()
    sin: Value | None = optional_operand()
    norm: bool = attribute(default=True)
    eps: float = attribute(default=1e-6)
    offset: float = attribute(default=0.0)
    cast: CastPoint = attribute(default="before_weight")
    scale: float = attribute(default=1.0)
    style: RopeStyle = attribute(default="half")
    table: RopeTable = attribute(default="full")
    start: int = attribute(default=0)
    width: int = attribute(default=0)
    sign: int = attribute(default=1)
    round: bool = attribute(default=True)

    @property
    def rows(self) -> tuple[Value, ...]:
        """The operands that are given: latent, shared key and q, in this order."""
        return tuple(v for v in (self.latent, self.shared, self.q) if v is not None)

    def check(self) -> None:
        """Reject operands that are not rows of the same tokens, or weights that do not fit them."""
        kinds = {(v.tensor.rank, v.shape[:2], v.dtype) for v in self.rows}
        if len(kinds) != 1 or next(iter(kinds))[0] != 3:
            raise OpError(self, f"rows {', '.join(str(v.type) for v in self.rows)}")
        for weight, row in ((self.latent_weight, self.latent), (self.q_weight, self.q)):
            if weight is None:
                continue
            if row is None or weight.shape != row.shape[-1:]:
                raise OpError(self, f"weight {weight.type} does not fit {row and row.type}")
            if self.cast == "before_weight" and promote([weight.tensor, row.tensor]) != row.dtype:
                raise OpError(self, f"weight {weight.type} widens {row.type}")
        if (self.cos is None) != (self.sin is None):
            raise OpError(self, "needs both cos and sin, or neither")

    @property
    def moved(self) -> Dim:
        """The bytes of the rows."""
        return dim(sum((v.tensor.nbytes for v in self.rows), start=0))

    @property
    def flops(self) -> Dim:
        """Of the norms; a rotation takes about as many."""
        return dim(5 * sum((v.tensor.numel for v in self.rows), start=0))


class MlaProjection(LatentRows, name="mla_projection", traits={Trait.PURE}):
    """Norms and rotation of what a token's projections give, in one pass over its rows.

    ``latent`` ``[B, S, L]`` is normalised (RMS, weight ``[L]`` where it has one) unless ``norm`` is
    false, and multiplied by ``scale``, rounded before and after; ``shared`` ``[B, S, R]``, the part
    of the keys that all heads have in common, is rotated; ``q`` ``[B, S, Q]``, the latent of the
    queries, is normalised. Each may be absent, and there is one result for each, in this order.
    cos and sin are ``[B, S, W]`` or ``[1, S, W]``, absent where there is no rotation. The other
    attributes are those of `RmsNorm`, the same for both norms, and of `Rope`.
    """

    ys: tuple[Value, ...] = variadic_result()

    def infer(self) -> tuple[TensorType, ...]:
        self.check()
        return tuple(v.tensor for v in self.rows)

    def cost(self) -> Cost:
        return Cost(dim(2 * self.moved), self.flops)

    def result_of(self, row: Value) -> Value:
        """The result that an operand becomes."""
        return self.ys[self.rows.index(row)]

    @staticmethod
    def reference(
        latent: Tensor | None,
        shared: Tensor | None,
        q: Tensor | None,
        latent_weight: Tensor | None,
        q_weight: Tensor | None,
        cos: Tensor | None,
        sin: Tensor | None,
        **attributes: Any,
    ) -> tuple[Tensor, ...]:
        done = _projected(latent, shared, q, latent_weight, q_weight, cos, sin, attributes)
        return tuple(t for t in done if t is not None)


class MlaProjectionWrite(LatentRows, name="mla_projection_write", traits={Trait.WRITES}):
    """`MlaProjection` whose latent and shared key go straight into their static caches.

    The caches are buffers ``[B, 1, Smax, L]`` and ``[B, 1, Smax, R]``, or the same without the dim
    of one head; token s is written at ``index[s]`` (i64 ``[S]``). Only q has a result.
    """

    index: Value | None = optional_operand()
    latent_cache: Value | None = optional_operand()
    shared_cache: Value | None = optional_operand()
    ys: tuple[Value, ...] = variadic_result()

    def infer(self) -> tuple[TensorType, ...]:
        self.check()
        if self.index is None or self.latent_cache is None:
            raise OpError(self, "needs an index and a cache of the latent")
        pairs = ((self.latent, self.latent_cache), (self.shared, self.shared_cache))
        for row, cache in pairs:
            if (row is None) != (cache is None):
                raise OpError(self, "needs a cache for each of latent and shared key")
            if row is not None and cache is not None and row.shape[-1] != cache.shape[-1]:
                raise OpError(self, f"a cache {cache.type} for {row.type}")
        if self.shared_cache is not None and not same(
            self.shared_cache.shape[-2], self.latent_cache.shape[-2]
        ):
            raise OpError(self, f"caches {self.latent_cache.type} and {self.shared_cache.type}")
        return () if self.q is None else (self.q.tensor,)

    def cost(self) -> Cost:
        return Cost(dim(2 * self.moved), self.flops)

    @staticmethod
    def reference(
        latent: Tensor,
        shared: Tensor | None,
        q: Tensor | None,
        latent_weight: Tensor | None,
        q_weight: Tensor | None,
        cos: Tensor | None,
        sin: Tensor | None,
        index: Tensor,
        latent_cache: Tensor,
        shared_cache: Tensor | None,
        **attributes: Any,
    ) -> tuple[Tensor, ...]:
        done = _projected(latent, shared, q, latent_weight, q_weight, cos, sin, attributes)
        for row, cache in zip(done, (latent_cache, shared_cache), strict=False):
            if row is not None and cache is not None:
                by_head = row.unsqueeze(1) if cache.dim() == 4 else row
                cache.index_copy_(cache.dim() - 2, index.reshape(-1), by_head)
        return () if done[2] is None else (done[2],)


def _projected(
    latent: Tensor | None,
    shared: Tensor | None,
    q: Tensor | None,
    latent_weight: Tensor | None,
    q_weight: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    a: dict[str, Any],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What latent, shared key and q become under the attributes of `MlaProjection`."""
    norm = {k: a[k] for k in ("eps", "offset", "cast")}
    if latent is not None and a["norm"]:
        latent = rms_norm_reference(latent, latent_weight, **norm)
    if latent is not None and a["scale"] != 1.0:
        latent = latent * a["scale"]
    if shared is not None and cos is not None and sin is not None:
        shared = rope_reference(shared, cos, sin, **{k: a[k] for k in _ROPE})
    if q is not None:
        q = rms_norm_reference(q, q_weight, **norm)
    return latent, shared, q
