"""Models of torchvision by name, with random weights: as published, or on small images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sdp_compile.errors import SDPError, did_you_mean
from sdp_compile.models.configuration import Configuration, Loaded, Size
from sdp_compile.models.weightless import build, inputs_for

SIDE = 64
"""Height and width of small images; exactness does not depend on them."""

# Small sizes that the architecture ties down, and models of more than 200 M parameters at reduced depth.
_SMALL_SIDES = {"inception_v3": 299, "maxvit_t": 224, "vit_h_14": 56}
_REDUCED_DEPTH = {"vit_h_14": 4, "vit_l_16": 6, "vit_l_32": 6, "regnet_y_128gf": 8}


def torchvision_model(name: str, size: Size = "small", weights: bool = True) -> Loaded:
    """Builds a torchvision model with a batch of two images or clips.

    Args:
        name: a name that ``torchvision.models.list_models()`` has.
        size: ``full`` takes the input size of the published weights, ``small`` small images, and fewer layers for the
            largest models.
        weights: False builds on the meta device.

    Raises:
        SDPError: no such name, or a model that no graph holds.
    """
    from torchvision import models

    names = models.list_models()
    if name not in names:
        raise SDPError(f"torchvision has no model {name!r}.{did_you_mean(name, names)}")
    if name in models.list_models(module=models.detection):
        raise SDPError(
            f"torchvision:{name} is a detection model: its outputs depend on the values of its inputs, so that no one "
            "graph holds it. Check its backbone, or give a factory of your own for the part that is trained."
        )
    if name in models.list_models(module=models.quantization):
        raise SDPError(
            f"torchvision:{name} is a quantized model, which cannot be trained; take the one it was made of."
        )
    shape = _small_shape(name) if size == "small" else _published_shape(name)
    if size == "small" and name in _REDUCED_DEPTH:
        return Loaded(_shallow(name), (_draw(2, *shape),), Configuration("small"))
    options: dict[str, Any] = {"weights": None}
    if name in models.list_models(module=models.segmentation):
        options |= {"weights_backbone": None}
    if name.startswith("vit_"):
        options |= {"image_size": shape[-1]}
    if name in ("inception_v3", "googlenet"):
        options |= {"init_weights": False}
    model, notes = build(lambda: models.get_model(name, **options), weights, f"torchvision:{name}")
    inputs = inputs_for(model, (_draw(2, *shape),))
    return Loaded(model, inputs, Configuration("small" if size == "small" else "published", notes=notes))


def _small_shape(name: str) -> tuple[int, ...]:
    """The shape of one small input."""
    from torchvision import models

    side = _SMALL_SIDES.get(name, SIDE)
    if name in models.list_models(module=models.video):
        # MViT has position encodings of the size of its own clips, S3D a last pooling over 7 x 7 positions.
        whole = name.startswith("mvit") or name == "s3d"
        return (3, 16, 224, 224) if whole else (3, 8, side, side)
    return 3, side, side


def _published_shape(name: str) -> tuple[int, ...]:
    """The shape of one input of the published weights; of several sizes, the smallest."""
    from torchvision import models

    presets = [weights.transforms() for weights in models.get_model_weights(name)]
    if name in models.list_models(module=models.segmentation):
        side = max(min(_sides(preset, "resize_size")) for preset in presets)
        return 3, side, side
    height, width = min(_sides(preset, "crop_size") for preset in presets)
    if name in models.list_models(module=models.video):
        return 3, 32 if name.startswith("swin3d") else 16, height, width
    return 3, height, width


def _sides(preset: Any, name: str) -> tuple[int, int]:
    value = getattr(preset, name)
    sides = [value] if isinstance(value, int) else list(value)
    return int(sides[0]), int(sides[-1])


def _shallow(name: str) -> nn.Module:
    """A model of the same family with fewer layers."""
    depth = _REDUCED_DEPTH[name]
    if name.startswith("regnet"):
        from torchvision.models.regnet import BlockParams, RegNet

        layers = BlockParams.from_init_params(
            depth=depth, w_0=456, w_a=160.83, w_m=2.52, group_width=264, se_ratio=0.25
        )
        regnet: nn.Module = RegNet(layers)
        return regnet
    from torchvision.models.vision_transformer import VisionTransformer

    width = 1280 if name == "vit_h_14" else 1024
    patch = int(name.rpartition("_")[2])
    transformer: nn.Module = VisionTransformer(
        image_size=_SMALL_SIDES.get(name, SIDE),
        patch_size=patch,
        num_layers=depth,
        num_heads=16,
        hidden_dim=width,
        mlp_dim=4 * width,
    )
    return transformer


def images(size: int, channels: int = 3) -> tuple[Tensor, ...]:
    """Returns a batch of two square images."""
    return (_draw(2, channels, size, size),)


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
