"""segmentation-models-pytorch: every architecture, and the families of encoders behind a U-Net."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_ARCHITECTURES = tuple(
    "Unet UnetPlusPlus MAnet Linknet FPN PSPNet DeepLabV3 DeepLabV3Plus PAN UPerNet Segformer DPT".split()
)
_ENCODERS = tuple(
    """
    resnet18 resnext50_32x4d timm-res2net50_26w_4s timm-resnest14d timm-regnetx_002 timm-gernet_s se_resnet50
    timm-skresnet18 densenet121 inceptionresnetv2 inceptionv4 efficientnet-b0 timm-efficientnet-b0
    timm-tf_efficientnet_lite0 mobilenet_v2 timm-mobilenetv3_small_075 dpn68 vgg11 vgg11_bn mit_b0 mobileone_s0 xception
    tu-convnext_atto tu-mobilenetv3_small_050 tu-edgenext_xx_small tu-pvt_v2_b0
    """.split()
)
_SIDES = {"DPT": 224, "PAN": 128}
"""Images of architectures that need larger ones than 64."""


def names(_seed: int) -> list[str]:
    """Returns ``ARCHITECTURE:ENCODER``."""
    with_resnet = [f"{name}:{'tu-vit_tiny_patch16_224' if name == 'DPT' else 'resnet18'}" for name in _ARCHITECTURES]
    known = [name for name in _ENCODERS if name.startswith("tu-") or name in _known()]
    mixed = [f"{name}:mit_b0" for name in ("FPN", "Segformer", "UPerNet")]
    return list(dict.fromkeys([*with_resnet, *(f"Unet:{name}" for name in known), *mixed]))


def build(name: str) -> tuple[nn.Module, Any]:
    """Returns a model with a batch of two images."""
    import segmentation_models_pytorch as package

    architecture, _, encoder = name.partition(":")
    options: dict[str, Any] = {"encoder_name": encoder, "encoder_weights": None, "in_channels": 3, "classes": 2}
    side = _SIDES.get(architecture, 64)
    model: nn.Module = getattr(package, architecture)(**options)
    return model, (torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)),)


def _known() -> list[str]:
    from segmentation_models_pytorch.encoders import get_encoder_names

    return list(get_encoder_names())
