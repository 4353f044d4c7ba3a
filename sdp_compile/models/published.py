"""The checkpoint that each transformers type is known by, and its fields where the class defaults differ from it.

A type that is missing here is built with the defaults of its configuration class, and called "default" instead of
"published". The numbers of labels are set by task; see `sdp_compile.models.language`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_AS_DEFAULTS = """
    albert albert/albert-xxlarge-v2
    audio-spectrogram-transformer MIT/ast-finetuned-audioset-10-10-0.4593
    bart facebook/bart-large
    bert google-bert/bert-base-uncased
    biogpt microsoft/biogpt
    bit google/bit-50
    blenderbot facebook/blenderbot-3B
    cohere CohereForAI/c4ai-command-r-v01
    convbert YituTech/conv-bert-base
    convnext facebook/convnext-tiny-224
    convnextv2 facebook/convnextv2-tiny-1k-224
    cvt microsoft/cvt-13
    data2vec-audio facebook/data2vec-audio-base-960h
    deepseek_v3 deepseek-ai/DeepSeek-V3
    deit facebook/deit-base-distilled-patch16-224
    distilbert distilbert/distilbert-base-uncased
    efficientnet google/efficientnet-b7
    electra google/electra-small-discriminator
    falcon tiiuae/falcon-7b
    fnet google/fnet-base
    focalnet microsoft/focalnet-tiny
    gemma google/gemma-7b
    gemma2 google/gemma-2-2b
    glm4 THUDM/GLM-4-9B-0414
    gpt2 openai-community/gpt2
    gpt_neo EleutherAI/gpt-neo-1.3B
    gpt_neox EleutherAI/gpt-neox-20b
    gptj EleutherAI/gpt-j-6B
    helium kyutai/helium-1-preview-2b
    hubert facebook/hubert-base-ls960
    layoutlm microsoft/layoutlm-base-uncased
    llama meta-llama/Llama-2-7b-hf
    m2m_100 facebook/m2m100_418M
    mamba2 mistralai/Mamba-Codestral-7B-v0.1
    megatron-bert nvidia/megatron-bert-uncased-345m
    mistral mistralai/Mistral-7B-v0.1
    mixtral mistralai/Mixtral-8x7B-v0.1
    mobilenet_v1 google/mobilenet_v1_1.0_224
    mobilenet_v2 google/mobilenet_v2_1.0_224
    mobilebert google/mobilebert-uncased
    mobilevit apple/mobilevit-small
    modernbert answerdotai/ModernBERT-base
    olmo allenai/OLMo-7B-hf
    mt5 google/mt5-small
    openai-gpt openai-community/openai-gpt
    opt facebook/opt-125m
    persimmon adept/persimmon-8b-base
    phi microsoft/phi-1
    phi3 microsoft/Phi-3-mini-4k-instruct
    plbart uclanlp/plbart-base
    poolformer sail/poolformer_s12
    prophetnet microsoft/prophetnet-large-uncased
    pvt Xrenya/pvt-tiny-224
    qwen2_moe Qwen/Qwen1.5-MoE-A2.7B
    regnet facebook/regnet-y-040
    rembert google/rembert
    resnet microsoft/resnet-50
    roformer junnyu/roformer_chinese_base
    rwkv RWKV/rwkv-4-7b-pile
    segformer nvidia/mit-b0
    smollm3 HuggingFaceTB/SmolLM3-3B
    speech_to_text facebook/s2t-small-librispeech-asr
    squeezebert squeezebert/squeezebert-uncased
    stablelm stabilityai/stablelm-3b-4e1t
    starcoder2 bigcode/starcoder2-3b
    swin microsoft/swin-tiny-patch4-window7-224
    swinv2 microsoft/swinv2-tiny-patch4-window8-256
    t5 google-t5/t5-small
    timesformer facebook/timesformer-base-finetuned-k400
    unispeech-sat microsoft/unispeech-sat-base
    videomae MCG-NJU/videomae-base
    vit google/vit-base-patch16-224
    vivit google/vivit-b-16x2-kinetics400
    wav2vec2 facebook/wav2vec2-base-960h
    wavlm microsoft/wavlm-base
    whisper openai/whisper-tiny
    xglm facebook/xglm-564M
"""

_ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}

_CHANGED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "bloom": ("bigscience/bloom-560m", {"hidden_size": 1024, "n_layer": 24, "n_head": 16, "vocab_size": 250880}),
    "camembert": ("almanach/camembert-base", {**_ROBERTA, "vocab_size": 32005}),
    "codegen": (
        "Salesforce/codegen-2B-mono",
        {"vocab_size": 51200, "n_embd": 2560, "n_layer": 32, "n_head": 32, "rotary_dim": 64},
    ),
    "deepseek_v2": (
        "deepseek-ai/DeepSeek-V2-Lite",
        {
            "vocab_size": 102400,
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "n_shared_experts": 2,
            "n_routed_experts": 64,
            "num_experts_per_tok": 6,
            "first_k_dense_replace": 1,
            "q_lora_rank": None,
            "kv_lora_rank": 512,
            "topk_method": "greedy",
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "dinov2": ("facebook/dinov2-base", {"image_size": 518, "patch_size": 14}),
    "ernie": (
        "nghuyong/ernie-3.0-base-zh",
        {"vocab_size": 40000, "max_position_embeddings": 2048, "type_vocab_size": 4, "use_task_id": True},
    ),
    "esm": (
        "facebook/esm2_t33_650M_UR50D",
        {
            "vocab_size": 33,
            "pad_token_id": 1,
            "mask_token_id": 32,
            "hidden_size": 1280,
            "num_hidden_layers": 33,
            "num_attention_heads": 20,
            "intermediate_size": 5120,
            "position_embedding_type": "rotary",
            "token_dropout": True,
        },
    ),
    "gemma3_text": (
        "google/gemma-3-1b-pt",
        {
            "vocab_size": 262144,
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_hidden_layers": 26,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "sliding_window": 512,
        },
    ),
    "gpt_bigcode": (
        "bigcode/gpt_bigcode-santacoder",
        {"vocab_size": 49280, "n_positions": 2048, "n_embd": 2048, "n_layer": 24, "n_head": 16, "n_inner": 8192},
    ),
    "ibert": ("kssteven/ibert-roberta-base", _ROBERTA),
    "longt5": (
        "google/long-t5-local-base",
        {
            "d_model": 768,
            "d_ff": 2048,
            "num_layers": 12,
            "num_decoder_layers": 12,
            "num_heads": 12,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
    ),
    "mamba": ("state-spaces/mamba-130m-hf", {"num_hidden_layers": 24}),
    "marian": (
        "Helsinki-NLP/opus-mt-en-de",
        {
            "vocab_size": 58101,
            "decoder_vocab_size": 58101,
            "d_model": 512,
            "encoder_layers": 6,
            "decoder_layers": 6,
            "encoder_attention_heads": 8,
            "decoder_attention_heads": 8,
            "encoder_ffn_dim": 2048,
            "decoder_ffn_dim": 2048,
            "max_position_embeddings": 512,
            "activation_function": "swish",
            "scale_embedding": True,
            "pad_token_id": 58100,
            "decoder_start_token_id": 58100,
        },
    ),
    "mbart": ("facebook/mbart-large-cc25", {"vocab_size": 250027}),
    "mpnet": ("microsoft/mpnet-base", {"max_position_embeddings": 514}),
    "mpt": (
        "mosaicml/mpt-7b",
        {"d_model": 4096, "n_heads": 32, "n_layers": 32, "max_seq_len": 2048, "vocab_size": 50432},
    ),
    "nemotron": ("nvidia/Nemotron-4-15B", {"num_key_value_heads": 8}),
    "olmo2": ("allenai/OLMo-2-1124-7B", {"vocab_size": 100352, "max_position_embeddings": 4096}),
    "olmoe": ("allenai/OLMoE-1B-7B-0924", {"intermediate_size": 1024, "max_position_embeddings": 4096}),
    "pegasus": (
        "google/pegasus-large",
        {"vocab_size": 96103, "encoder_layers": 16, "decoder_layers": 16, "activation_function": "relu"},
    ),
    "qwen2": (
        "Qwen/Qwen2-7B",
        {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
        },
    ),
    "qwen3": (
        "Qwen/Qwen3-8B",
        {"intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8},
    ),
    "qwen3_moe": ("Qwen/Qwen3-30B-A3B", {"num_hidden_layers": 48, "head_dim": 128}),
    "roberta": ("FacebookAI/roberta-base", _ROBERTA),
    "switch_transformers": (
        "google/switch-base-8",
        {"d_ff": 3072, "num_sparse_encoder_layers": 6, "num_sparse_decoder_layers": 6},
    ),
    "umt5": ("google/umt5-small", {"vocab_size": 256384, "tie_word_embeddings": False}),
    "xlm-roberta": ("FacebookAI/xlm-roberta-base", {**_ROBERTA, "vocab_size": 250002}),
}


def published(model_type: str) -> tuple[str, Mapping[str, Any]] | None:
    """Returns the checkpoint of a type and the fields to set beside the class defaults; None for an unlisted type."""
    if model_type in _CHANGED:
        return _CHANGED[model_type]
    checkpoint = _DEFAULT_CHECKPOINTS.get(model_type)
    return None if checkpoint is None else (checkpoint, {})


def _pair(line: str) -> tuple[str, str]:
    model_type, checkpoint = line.split()
    return model_type, checkpoint


_DEFAULT_CHECKPOINTS = dict(map(_pair, _AS_DEFAULTS.strip().splitlines()))
