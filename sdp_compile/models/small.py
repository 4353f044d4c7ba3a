"""Small configurations of transformers types: every kind of layer, and a size that fits a laptop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SMALL: Mapping[str, Any] = {
    **dict.fromkeys(
        "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers "
        "num_encoder_layers num_hidden_groups".split(),
        2,
    ),
    **dict.fromkeys(
        "hidden_size d_model n_embd dim emb_dim embedding_size word_embed_proj_dim decoder_hidden_size".split(), 64
    ),
    **dict.fromkeys(
        "intermediate_size d_ff ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner hidden_dim ffn_hidden_size "
        "decoder_intermediate_size shared_expert_intermediate_size".split(),
        192,
    ),
    **dict.fromkeys(
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
        "num_decoder_heads decoder_num_attention_heads".split(),
        4,
    ),
    "num_key_value_heads": 2,
    "head_dim": 16,
    "d_kv": 16,
    "d_head": 16,
    "rotary_dim": 8,
    "d_inner": 96,
    "moe_intermediate_size": 48,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_num_experts": 4,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "vocab_size": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    **dict.fromkeys("max_position_embeddings n_positions n_ctx max_seq_len".split(), 128),
    "image_size": 64,
    "max_source_positions": 32,
    "max_target_positions": 64,
    "max_2d_position_embeddings": 64,
    "num_frames": 4,
    "max_length": 64,
    "projection_dim": 32,
    **dict.fromkeys("out_hidden_size text_hidden_size condition_dim audio_hidden_size".split(), 64),  # as hidden_size
    "use_cache": False,
    "apply_spec_augment": False,
    **dict.fromkeys("layerdrop encoder_layerdrop decoder_layerdrop".split(), 0.0),
}
"""The small value of each field, for the configurations that have it."""

SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "data2vec-audio": {"conv_dim": (32,) * 7},
    "donut-swin": {"image_size": 224},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "dpt": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
    "efficientnet": {"hidden_dim": 1280, "width_coefficient": 1.0, "depth_coefficient": 1.0},
    "esm": {"pad_token_id": 0, "mask_token_id": 3},
    "gemma3n_text": {"layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hy_v4_vl_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}},
    "layoutlmv3": {"coordinate_size": 10, "shape_size": 12},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lilt": {"hidden_size": 96},
    "mamba2": {"num_heads": 8, "n_groups": 2, "state_size": 16},
    "maskformer-swin": {"image_size": 224},
    "muse_spark_audio": {"num_hidden_layers": 4},
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {"axial_pos_embds_dim": [32, 32], "axial_pos_shape": [4, 4]},
    "rembert": {"input_embedding_size": 64, "output_embedding_size": 64},
    "swin": {"image_size": 224},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"]},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
    **{name: {"num_key_value_heads": 4} for name in ("dots3_note_text", "esmc", "glm5_next_text")},
    **{
        name: {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
        for name in (
            "cosmos3_edge_text glm4v_text glm_image_text glm_ocr_text paddleocr_vl_text qwen2_vl_text qwen2_5_vl_text "
            "qwen2_5_omni_text"
        ).split()
    },
    "glm4v_moe_text": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
            "mrope_section": [2, 1, 1],
        }
    },
}
"""Further fields of some types, where the small values depend on each other."""

_WITHOUT_DEFAULT = ("n_inner", "vocab_size", "num_experts_per_tok", "head_dim")
"""Fields that a default configuration leaves empty although the model needs them."""

_BY_LAYER = ("out_features", "out_indices", "stage_names", "per_layer_config")
"""Fields that name or number the layers of a configuration."""


def small_fields(config: Any) -> dict[str, Any]:
    """Returns small values for the fields that ``config`` has, nested configurations included."""
    fields = config.to_dict()
    renamed = {alias for alias, name in getattr(config, "attribute_map", {}).items() if name in fields}
    result = {key: value for key, value in SMALL.items() if key in fields and key not in renamed}
    # A field that is absent on purpose stays so, such as special tokens of a model without text.
    result = {key: value for key, value in result.items() if fields[key] is not None or key in _WITHOUT_DEFAULT}
    # Hierarchical models have one value per stage, which fit together as they are.
    result = {key: value for key, value in result.items() if not isinstance(fields[key], (list, tuple))}
    if isinstance(fields.get("depths"), (list, tuple)):
        result["depths"] = [min(2, depth) for depth in fields["depths"]]
    if isinstance(fields.get("qk_rope_head_dim"), int):  # latent attention: each head has keys of its own
        result |= {key: value for key, value in (("head_dim", 8), ("num_key_value_heads", 4)) if key in result}
    for name in getattr(config, "sub_configs", {}):
        nested = getattr(config, name, None)
        if nested is not None and hasattr(nested, "to_dict"):
            result[name] = {**_own(nested), **small_fields(nested), "model_type": nested.model_type}
    return {**result, **SPECIAL.get(config.model_type, {})}


def _own(nested: Any) -> dict[str, Any]:
    """Returns what an outer configuration sets in a nested one, apart from what names its layers one by one."""
    layers = getattr(nested, "num_hidden_layers", None)
    return {
        key: value
        for key, value in nested.to_diff_dict().items()
        if not (isinstance(value, (list, tuple)) and len(value) == layers)
        and not (isinstance(layers, int) and key in _BY_LAYER)
    }
