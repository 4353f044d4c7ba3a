"""Transformers models by type: randomly initialised from small configurations, nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdp_compile.capture.diagnosis import first_line
from sdp_compile.errors import SDPError, did_you_mean

Built = tuple[nn.Module, dict[str, Tensor]]

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
    "use_cache": False,
    "apply_spec_augment": False,
    **dict.fromkeys("layerdrop encoder_layerdrop decoder_layerdrop".split(), 0.0),
}
"""What a configuration is changed to where it has such a field; enough to see every axis, fit for a laptop."""

SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "data2vec-audio": {"conv_dim": (32,) * 7},
    "deepseek_v2": {"head_dim": 8, "num_key_value_heads": 4},
    "deepseek_v3": {"head_dim": 8, "num_key_value_heads": 4},
    "dpt": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
    "efficientnet": {"hidden_dim": 1280, "width_coefficient": 1.0, "depth_coefficient": 1.0},
    "esm": {"pad_token_id": 0, "mask_token_id": 3},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 8, "n_groups": 2, "state_size": 16},
    "nemotron": {"num_key_value_heads": 2},
    "rembert": {"input_embedding_size": 64, "output_embedding_size": 64},
    "swin": {"image_size": 224},
}
"""What the fields of some types must be beside the small ones, because they depend on each other."""

_WITHOUT_DEFAULT = ("n_inner", "vocab_size", "num_experts_per_tok")
"""Fields that a default configuration leaves empty although the model needs them."""

# The tasks by preference: the first that a type has a model for says which class is built.
_TASKS = (
    "SEQ_TO_SEQ_CAUSAL_LM",
    "SPEECH_SEQ_2_SEQ",
    "MASKED_LM",
    "CAUSAL_LM",
    "CTC",
    "IMAGE_CLASSIFICATION",
    "VIDEO_CLASSIFICATION",
    "AUDIO_CLASSIFICATION",
    "SEMANTIC_SEGMENTATION",
    "DEPTH_ESTIMATION",
    "OBJECT_DETECTION",
    "SEQUENCE_CLASSIFICATION",
    "",
)


def transformers_model(model_type: str, settings: Mapping[str, Any] | None = None) -> Built:
    """The small model of a ``model_type`` (llama, bert, t5, vit, whisper, ...) with its keyword inputs.

    ``settings`` override fields of the configuration; ``text_config.hidden_size`` reaches into a nested one.
    """
    import transformers

    class_name = _class_name(model_type)
    config = small_config(model_type, settings or {})
    kind = getattr(transformers, class_name)
    if getattr(kind, "_can_set_experts_implementation", bool)():
        config._experts_implementation = "batched_mm"  # the default, a fused operator, knows no float64
    try:
        model: nn.Module = kind(config)
    except Exception as error:
        raise SDPError(
            f"transformers:{model_type}: {class_name} cannot be built from the small configuration: "
            f"{first_line(error)}. Change it with --set key=value."
        ) from error
    # A configuration made in passing may hold none of what the model reads: its own is what counts.
    return model.train(), example_inputs(model, config)


def small_config(model_type: str, settings: Mapping[str, Any]) -> Any:
    """A configuration with the `SMALL` values and the user's ``settings``."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    default = kind()
    for key in settings:
        known = [*default.to_dict(), *getattr(kind, "attribute_map", {})]
        if key.partition(".")[0] not in known:
            raise SDPError(f"transformers:{model_type} has no setting {key!r}.{did_you_mean(key, known)}")
    try:
        return kind(**_nested({**_shrunk(default), **SPECIAL.get(model_type, {})}, settings))
    except Exception as error:
        raise SDPError(
            f"transformers:{model_type}: the configuration does not accept its small values: {first_line(error)}. "
            "Change them with --set key=value."
        ) from error


def _shrunk(config: Any) -> dict[str, Any]:
    """Small values for those fields that a default configuration has, nested configurations too."""
    fields = config.to_dict()
    renamed = {alias for alias, name in getattr(config, "attribute_map", {}).items() if name in fields}
    result = {key: value for key, value in SMALL.items() if key in fields and key not in renamed}
    # A field that is absent on purpose stays so, such as special tokens of a model without text.
    result = {key: value for key, value in result.items() if fields[key] is not None or key in _WITHOUT_DEFAULT}
    # Hierarchical models have one value per stage, which fit together as they are.
    result = {key: value for key, value in result.items() if not isinstance(fields[key], (list, tuple))}
    if isinstance(fields.get("depths"), (list, tuple)):
        result["depths"] = [min(2, depth) for depth in fields["depths"]]
    for name in getattr(config, "sub_configs", {}):
        nested = getattr(config, name, None)
        if nested is not None and hasattr(nested, "to_dict"):
            result[name] = {**_shrunk(nested), "model_type": nested.model_type}
    return result


def _nested(fields: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in settings.items():
        outer, dot, inner = key.partition(".")
        if dot:
            fields[outer] = _nested(dict(fields.get(outer) or {}), {inner: value})
        else:
            fields[key] = value
    return fields


def _class_name(model_type: str) -> str:
    """The class that is built for a type. Raises `SDPError` with close matches."""
    from transformers.models.auto import configuration_auto, modeling_auto

    known = getattr(configuration_auto, "CONFIG_MAPPING_NAMES")  # noqa: B009 (not among its declared names)
    if model_type not in known:
        raise SDPError(f"transformers has no model type {model_type!r}.{did_you_mean(model_type, known)}")
    for task in _TASKS:
        names = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES" if task else "MODEL_MAPPING_NAMES", {})
        name = names.get(model_type)
        if name:
            return str(name if isinstance(name, str) else name[0])
    raise SDPError(
        f"transformers:{model_type} is a configuration without a model of its own; name the type of one of its parts, "
        "or give a factory."
    )


def example_inputs(model: nn.Module, config: Any) -> dict[str, Tensor]:
    """A batch of two for the model's main input: tokens, images, clips, waveforms or spectrograms."""
    generator = torch.Generator().manual_seed(0)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config

    def tokens(length: int) -> Tensor:
        return torch.randint(3, int(getattr(text, "vocab_size", 128)), (2, length), generator=generator)

    main = str(getattr(model, "main_input_name", "input_ids"))
    inputs: dict[str, Tensor] = {}
    if main == "pixel_values":
        inputs[main] = torch.randn(_image_shape(config), generator=generator)
    elif main == "input_values":
        shape = (2, config.max_length, config.num_mel_bins) if hasattr(config, "num_mel_bins") else (2, 4000)
        inputs[main] = torch.randn(shape, generator=generator)
    elif main == "input_features":
        inputs[main] = torch.randn(_spectrogram_shape(config), generator=generator)
    elif main in ("pixel_values_videos", "video"):
        inputs[main] = torch.randn((2, 4, 3, 64, 64), generator=generator)
    else:
        inputs[main] = tokens(16)
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = tokens(8)
        if main == "input_ids":
            inputs["attention_mask"] = torch.ones_like(inputs[main])  # some encoders cannot do without
    return inputs


def _image_shape(config: Any) -> tuple[int, ...]:
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", 64) or 64
    height, width = (size, size) if isinstance(size, int) else (size[0], size[1])
    shape = (int(getattr(vision, "num_channels", 3) or 3), int(height), int(width))
    frames = getattr(vision, "num_frames", None)
    return (2, int(frames), *shape) if frames else (2, *shape)


def _spectrogram_shape(config: Any) -> tuple[int, ...]:
    if hasattr(config, "num_mel_bins"):  # as whisper takes it
        return (2, int(config.num_mel_bins), 2 * int(getattr(config, "max_source_positions", 32)))
    return (2, 64, int(getattr(config, "input_feat_per_channel", getattr(config, "feature_projection_input_dim", 80))))
