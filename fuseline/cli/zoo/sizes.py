"""The sizes of tiny models, by the names that fields of configurations have.

Sizes are odd where nothing speaks against it: a kernel that only fits round ones shows. Widths are
multiples of 8, because torch's grouped product takes rows of a multiple of 16 bytes only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Setting: TypeAlias = int | float | bool

VOCABULARY = 131
FIRST_PLAIN_TOKEN = 3
"""Token ids below this are special ones."""

LAYERS = 2
"""Where a configuration does not have more kinds of layers."""


@dataclass(frozen=True)
class Sizes:
    """The sizes on which others depend, in this class or that."""

    hidden: int = 88
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 20
    intermediate: int = 104


ALTERNATIVES = (
    Sizes(),
    Sizes(kv_heads=4),
    Sizes(hidden=96, head_dim=24),
    Sizes(hidden=96, head_dim=24, kv_heads=4),
    Sizes(hidden=96, head_dim=48, kv_heads=4),  # heads as wide as twice the model: state spaces
    Sizes(hidden=128, head_dim=32, kv_heads=4, intermediate=128),
)
"""What is tried in turn until a class accepts it, and its model runs."""

_RULES: Mapping[str, Setting | str] = {
    # tokens
    "pad_token_id": 0,
    "bos_token_id": 1,
    r".*_token_(id|index)": 2,
    r"(.*_)?vocab(_size)?(_per_layer_input)?": VOCABULARY,
    "ngram_vocab_size_base": VOCABULARY,
    "make_ngram_vocab_size_divisible_by": 1,
    r"(original_)?max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length": 64,
    r"max_target_positions|max_source_positions": 64,
    # depth; where layers differ by a period, a short one shows each kind
    r"num_(hidden_|encoder_|decoder_)?layers|n_layers?|(en|de)coder_layers|num_blocks": LAYERS,
    r"first_k_dense_replace|num_dense_layers|num_kv_shared_layers": 1,
    r"global_attn_every_n_layers|(.*_)?sliding_window_pattern|layer_group_size": 2,
    r"(attn|expert)_layer_period|no_rope_layer_interval|interleave_moe_layer_step": 2,
    r"(attn|expert)_layer_offset": 1,
    r"num_layers_per_stack": 1,
    r"num_mtp_layers|num_nextn_predict_layers": 0,
    # widths
    r"hidden_size_per_layer_input|ple_embed_dim": 16,
    r"(linear|recurrent|cross_attention|lru)_(hidden_size|width)": "hidden",
    r"(backbone_)?hidden_size(_global)?|(d|dim)_model|n_embd|emb_dim|lru_width": "hidden",
    r"(input_|output_)?embedding_size|word_embed_proj_dim|embedding_dim": "hidden",
    r"(shared_experts?|moe_shared_expert|shared)_intermediate_size": 56,
    r"(moe|expert)_(intermediate|ffn_hidden)_size": 40,
    r"intermediate_size_mlp|dense_intermediate_size": 120,
    r"(.*_)?intermediate_size|(.*_)?ffn_(dim|hidden_size)|feed_forward_size": "intermediate",
    r"dff|d_inner|dim_ff|n_inner|prompt_mid_dim": "intermediate",
    r"moe_latent_size": 48,
    r"router_hidden_size": 24,
    # attention
    r"linear_num_value_heads": "heads",
    "indexer_kv_heads": 1,
    r"(.*_)?(num_key_value_heads|kv_heads|num_key_heads)": "kv_heads",
    r"indexer_n_heads|index_n_heads": 2,
    r"(.*_)?(attention_)?(num_)?(attention_)?heads|(.*_)?n_(mamba_)?heads?": "heads",
    r"v_head_dim": 20,
    r"qk_rope_head_dim|rotary_dim": 8,
    r"qk_nope_head_dim": 12,
    "index_head_dim": 16,
    "indexer_head_dim": 24,
    r"(.*_)?(head_dim|dim_head|d_head|kv_channels|attention_head_size)": "head_dim",
    r"query_pre_attn_scalar": "head_dim",
    r"kv_lora_rank": 24,
    r"q_lora_rank": 28,
    r"(.*_)?(rank|lowrank)": 16,
    r"(.*_)?(sliding_window|window_size|attention_window_len)|sliding_window_size": 8,
    r"attention_chunk_size|local_attention|index_block_size|rel_extent": 8,
    r"index_topk|indexer_budget": 4,
    r"index_topk_blocks|indexer_compress_ratio": 2,
    # experts
    r"(num|n|moe_num)_(local_|routed_)?experts": 6,
    r"num_experts_per_tok(en)?|moe_top_?k|moe_k|top_k_experts": 2,
    r"(num|n|moe_num)_shared_experts?": 1,
    r"n_group": 2,
    r"topk_group": 1,
    r"zero_expert_num": 2,
    r"enable_moe_block": True,
    # state spaces
    r"(mamba_)?(d_state|state_size)|ssm_state_size": 12,
    r"(mamba_)?(n_groups|ngroups)": 1,
    r"mamba_d_ssm": 80,
    r"(mamba_)?chunk_size": 8,
    # what has no size
    r"is_decoder": True,
    r"hash_seed": 0,
    r"initializer_range|init_std": 0.1,
}


EXCEPTIONS: Mapping[str, Mapping[str, Any]] = {
    # No layer attends unless one is told to, and their caches take at least one that does.
    "BambaConfig": {"attn_layer_indices": [1]},
    "GraniteMoeHybridConfig": {"layer_types": ["linear_attention", "full_attention"]},
    # Layers alternate in a pattern that the configuration does not hold layer by layer.
    "RecurrentGemmaConfig": {"num_hidden_layers": 3},
    "Lfm2Config": {"layer_types": ["conv", "full_attention"]},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "ReformerConfig": {
        "attn_layers": ["local", "lsh"],
        "axial_pos_embds_dim": (32, 56),
        "axial_pos_shape": (8, 8),
    },
    # One layer's weights are shared with the others of its kind: there must be others.
    "ZambaConfig": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
    },
    # The defaults leave out what the model reads.
    "CohereCompassTextConfig": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    },
    "DbrxAttentionConfig": {"rope_theta": 10000.0, "clip_qkv": 8.0},
    "XmodConfig": {"default_language": "en_XX"},
    # The rotary part alone is what the name of the whole means there.
    "LongcatFlashConfig": {"head_dim": 8},
}
"""Settings of classes that take no others; each kind with its reason."""


PARTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    # The model of a draft takes a part that is plainer than that part's own defaults.
    "Gemma4AssistantConfig": {
        "text_config": {
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "enable_moe_block": False,
            "use_double_wide_mlp": False,
        }
    },
}
"""What classes ask of the configurations in them, by the fields that hold these."""


def size(name: str, sizes: Sizes) -> Setting | None:
    """The tiny size of a field; None for one that is left as it is."""
    found = next((value for rule, value in _RULES.items() if re.fullmatch(rule, name)), None)
    return getattr(sizes, found) if isinstance(found, str) else found
