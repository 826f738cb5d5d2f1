"""The ordered list of passes: the compiler's table of contents."""

from __future__ import annotations

from fuseline.passes.cache_latents import CacheLatents
from fuseline.passes.canonicalize import Canonicalize
from fuseline.passes.cse import Cse
from fuseline.passes.dce import Dce
from fuseline.passes.fold_constants import FoldConstants
from fuseline.passes.fuse_add_rms_norm import FuseAddRmsNorm
from fuseline.passes.fuse_cache_write import FuseCacheWrite
from fuseline.passes.fuse_gated_mlp import FuseGatedMlp
from fuseline.passes.fuse_linear_add import FuseLinearAdd
from fuseline.passes.fuse_mla import FuseMla
from fuseline.passes.fuse_moe import FuseMoe
from fuseline.passes.fuse_norm_linear import FuseNormLinear
from fuseline.passes.fuse_pointwise import FusePointwise
from fuseline.passes.fuse_qk_norm import FuseQkNorm
from fuseline.passes.fuse_qk_rope import FuseQkRope
from fuseline.passes.fuse_rms_norm_add import FuseRmsNormAdd
from fuseline.passes.fuse_sandwich_norm import FuseSandwichNorm
from fuseline.passes.fuse_wide_linear import FuseWideLinear
from fuseline.passes.fuse_writes import FuseWrites
from fuseline.passes.known_sizes import KnownSizes
from fuseline.passes.lift_numbers import LiftNumbers
from fuseline.passes.lower_gated_mlp import LowerGatedMlp
from fuseline.passes.lower_index_put import LowerIndexPut
from fuseline.passes.lower_matmul import LowerMatmul
from fuseline.passes.merge_linears import MergeLinears
from fuseline.passes.merge_rows import MergeRows
from fuseline.passes.plan import ProtectReads
from fuseline.passes.raise_attention import RaiseAttention
from fuseline.passes.raise_experts import RaiseExperts
from fuseline.passes.raise_gated_mlp import RaiseGatedMlp
from fuseline.passes.raise_latent_attention import RaiseLatentAttention
from fuseline.passes.raise_layer_norm import RaiseLayerNorm
from fuseline.passes.raise_multi_lora import RaiseMultiLora
from fuseline.passes.raise_rms_norm import RaiseRmsNorm
from fuseline.passes.raise_rope import RaiseRope
from fuseline.passes.raise_route import RaiseRoute
from fuseline.passes.restore_mutations import RestoreMutations
from fuseline.passes.rewrite import Pass
from fuseline.passes.split_cache_write import SplitCacheWrite


def default_pipeline(*, cache_latents: bool = False, on_gpu: bool = False) -> list[Pass]:
    """The passes that a compilation runs, in order.

    Args:
        cache_latents: replace caches of keys and values by caches of the latents that these are
            expanded from.
        on_gpu: kernels are made for a GPU, where each launch costs a microsecond or two: norms are
            joined with the products behind them.
    """
    return [
        # clean up: one spelling of casts, views, transposes and constants
        FoldConstants(),
        Canonicalize(),
        Cse(),
        Dce(),
        RestoreMutations(),
        Cse(),  # the writes of keys and values now share their places
        # raise: what a model author would name
        RaiseMultiLora(),  # before experts: two gathered products with nothing between them
        RaiseExperts(),
        RaiseAttention(),
        RaiseLayerNorm(),
        RaiseRmsNorm(),
        RaiseRope(),
        RaiseGatedMlp(),
        RaiseRoute(),
        LowerIndexPut(),
        LowerMatmul(),  # no attention is spelled with those that are left
        Cse(),  # queries and keys now share their tables
        Dce(),
        KnownSizes(),
        *([CacheLatents()] if cache_latents else []),
        RaiseLatentAttention(),  # what is dead no longer reads the keys
        # fuse: what one kernel does
        FuseMoe(),
        FuseGatedMlp(),
        LowerGatedMlp(),
        FuseWideLinear(),
        MergeLinears(),
        FuseMla(),
        FuseLinearAdd(),
        FuseAddRmsNorm(),
        FuseRmsNormAdd(),
        FuseSandwichNorm(),
        FuseQkNorm(),
        FuseQkRope(),
        FuseCacheWrite(),
        SplitCacheWrite(),
        MergeRows(),  # those that are no part of anything larger
        *([FuseNormLinear()] if on_gpu else []),
        LiftNumbers(),  # no pass behind this one looks into constants
        FusePointwise(),
        FuseWrites(),
        # plan: nothing is overwritten before its last reader
        ProtectReads(),
    ]
