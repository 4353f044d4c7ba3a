"""x-transformers: a decoder and an encoder, each with one of the package's many switches at a time."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

_LENGTH = 16


def names(_seed: int) -> list[str]:
    """Returns ``KIND`` for the plain models and ``KIND:SWITCH`` for each switch that is off by default."""
    from x_transformers.x_transformers import Attention, AttentionLayers, FeedForward, TransformerWrapper

    switches = [
        *_switches(AttentionLayers, ""),
        *_switches(Attention, "attn_"),
        *_switches(FeedForward, "ff_"),
        *(f"wrapper.{name}" for name in _switches(TransformerWrapper, "")),
    ]
    return [
        *("Decoder", "Encoder", "ViT", "XTransformer"),
        *(f"Decoder:{name}" for name in switches),
        *(f"Encoder:{name}" for name in switches),
    ]


def build(name: str) -> tuple[nn.Module, Any]:
    """Returns a model of two layers, with tokens or an image."""
    import x_transformers as package

    kind, _, switch = name.partition(":")
    sizes: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 2, "attn_dim_head": 16}
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 64, (2, _LENGTH), generator=generator)
    if kind == "ViT":
        layers = package.Encoder(**sizes)
        vit = package.ViTransformerWrapper(image_size=32, patch_size=8, num_classes=10, attn_layers=layers)
        return vit, (torch.randn(2, 3, 32, 32, generator=generator),)
    if kind == "XTransformer":
        both = {
            f"{part}_{key}": value
            for part in ("enc", "dec")
            for key, value in {
                "num_tokens": 64,
                "depth": 2,
                "heads": 2,
                "max_seq_len": _LENGTH,
                "attn_dim_head": 16,
            }.items()
        }
        return package.XTransformer(dim=32, **both), (tokens, tokens.flip(1))
    of_layers, of_wrapper = {}, {}
    if switch.startswith("wrapper."):
        of_wrapper[switch.partition(".")[2]] = True
    elif switch:
        of_layers[switch] = True
    layers = getattr(package, kind)(**sizes, **of_layers)
    model = package.TransformerWrapper(num_tokens=64, max_seq_len=_LENGTH, attn_layers=layers, **of_wrapper)
    return model, (tokens,)


def _switches(cls: type, prefix: str) -> list[str]:
    """The parameters of a constructor that are False by default."""
    parameters = inspect.signature(cls).parameters.values()
    return [prefix + one.name for one in parameters if one.default is False]
