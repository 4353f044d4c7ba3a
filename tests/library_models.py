"""The models that the whole suite is held to, small enough for two cores, with their example inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

Example = tuple[nn.Module, tuple[Any, ...], Mapping[str, Any]]


def _vision(name: str, size: int = 64, **options: Any) -> Example:
    import torchvision

    # Deep batch norms over two values, of two images of one pixel, magnify rounding errors: on some processors to 3e-9.
    model = getattr(torchvision.models, name)(weights=None, num_classes=10, **options)
    return model, (torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)),), {}


def _vgg() -> Example:
    """VGG-11 with batch norm, its two hidden linear layers narrowed from 4,096 to 256 units: 120 of 129 million
    parameters are theirs."""
    model, args, kwargs = _vision("vgg11_bn", 32)
    for number, sizes in ((0, (512 * 7 * 7, 256)), (3, (256, 256)), (6, (256, 10))):
        model.classifier[number] = nn.Linear(*sizes)
    return model, args, kwargs


def _vit() -> Example:
    """ViT-B/16 in a quarter of its width."""
    from torchvision.models import VisionTransformer

    model = VisionTransformer(32, 16, num_layers=12, num_heads=12, hidden_dim=192, mlp_dim=768, num_classes=10)
    return model, (torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),), {}


def _tokens(length: int = 16) -> torch.Tensor:
    return torch.randint(0, 96, (2, length), generator=torch.Generator().manual_seed(0))


def _gpt2() -> Example:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=2,
        n_embd=48,
        n_head=6,
        vocab_size=96,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    tokens = _tokens()
    return GPT2LMHeadModel(config), (), {"input_ids": tokens, "labels": tokens}


def _llama() -> Example:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=96,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config), (), {"input_ids": _tokens()}


def _bert() -> Example:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        num_hidden_layers=2,
        hidden_size=48,
        intermediate_size=96,
        num_attention_heads=4,
        vocab_size=96,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    attention_mask = torch.ones(2, 16, dtype=torch.long)
    attention_mask[1, 10:] = 0
    return BertForMaskedLM(config), (), {"input_ids": _tokens(), "attention_mask": attention_mask}


MODELS: Mapping[str, Callable[[], Example]] = {
    "resnet18": lambda: _vision("resnet18", 32),
    "resnet50": lambda: _vision("resnet50", 64),
    "vgg11_bn": _vgg,
    "densenet121": lambda: _vision("densenet121", 64),
    "mobilenet_v3_small": lambda: _vision("mobilenet_v3_small", 32),
    "convnext_tiny": lambda: _vision("convnext_tiny", 32),
    "vit_b_16": _vit,
    "swin_t": lambda: _vision("swin_t", 32),
    "gpt2": _gpt2,
    "llama": _llama,
    "bert": _bert,
}

WITH_BLOCKS = tuple(name for name in MODELS if name not in {"vgg11_bn", "densenet121"})


def doubled(example: Example) -> Example:
    """The same model and inputs in float64."""
    model, args, kwargs = example

    def double(value: Any) -> Any:
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return model.double(), tuple(map(double, args)), {key: double(value) for key, value in kwargs.items()}
