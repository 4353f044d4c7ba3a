"""Models of torchvision and timm by name, with small inputs and without weights from elsewhere."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdp_compile.capture.diagnosis import first_line
from sdp_compile.errors import SDPError, did_you_mean

SIZE = 64
"""Height and width of images where a model takes any; exactness does not depend on it."""

Built = tuple[nn.Module, tuple[Tensor, ...]]

# Sizes that the architecture ties down, and models of more than 200 M parameters at reduced depth.
_IMAGE_SIZES = {"inception_v3": 299, "maxvit_t": 224, "vit_h_14": 56}
_TIMM_OPTIONS: Mapping[str, Mapping[str, Any]] = {"deepseek_vit_412m": {"depth": 4}, "gemma4_vit_167m": {"depth": 4}}
_REDUCED_DEPTH = {"vit_h_14": 4, "vit_l_16": 6, "vit_l_32": 6, "regnet_y_128gf": 8}


def torchvision_model(name: str) -> Built:
    """A torchvision model, randomly initialised, with a batch of two small images or clips."""
    from torchvision import models

    names = models.list_models()
    if name not in names:
        raise SDPError(f"torchvision has no model {name!r}.{did_you_mean(name, names)}")
    if name in models.list_models(module=models.detection):
        raise SDPError(
            f"torchvision:{name} is a detection model: its outputs depend on the values of its inputs, so that no one "
            "graph holds it. Check its backbone, or give a factory of your own for the part that is trained."
        )
    if name in _REDUCED_DEPTH:
        return _shallow(name), images(_IMAGE_SIZES.get(name, SIZE))
    options: dict[str, Any] = {"weights": None}
    size = _IMAGE_SIZES.get(name, SIZE)
    if name in models.list_models(module=models.segmentation):
        options |= {"weights_backbone": None}
    if name.startswith("vit_"):
        options |= {"image_size": size}
    if name in ("inception_v3", "googlenet"):
        options |= {"init_weights": False}
    if name in models.list_models(module=models.quantization):
        raise SDPError(
            f"torchvision:{name} is a quantized model, which cannot be trained; take the one it was made of."
        )
    model = models.get_model(name, **options)
    if name in models.list_models(module=models.video):
        # MViT has position encodings of the size of its own clips, S3D a last pooling over 7 x 7 positions.
        whole = name.startswith("mvit") or name == "s3d"
        frames, size = (16, 224) if whole else (8, size)
        return model, (_draw(2, 3, frames, size, size),)
    return model, images(size)


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
        image_size=_IMAGE_SIZES.get(name, SIZE),
        patch_size=patch,
        num_layers=depth,
        num_heads=16,
        hidden_dim=width,
        mlp_dim=4 * width,
    )
    return transformer


def timm_model(name: str) -> Built:
    """A timm model, randomly initialised, with the smallest images of a few sizes that it accepts."""
    import timm

    known: Iterable[str] = timm.list_models()
    if name.partition(".")[0] not in known:
        raise SDPError(f"timm has no model {name!r}.{did_you_mean(name, known)}")
    failure: Exception | None = None
    for size, options in _timm_sizes(name):
        try:
            model: nn.Module = timm.create_model(name, pretrained=False, **_TIMM_OPTIONS.get(name, {}), **options)
            inputs = images(size, channels=int(model.pretrained_cfg.get("input_size", (3,))[0]))  # type: ignore[union-attr, operator]
            if _runs(model, inputs):
                return model, inputs
        except Exception as error:  # whatever the library raises, the next size may do
            failure = error
    text = "it runs at none of the image sizes tried" if failure is None else first_line(failure)
    raise SDPError(f"timm:{name} cannot be built: {text}.") from failure


def _timm_sizes(name: str) -> list[tuple[int, Mapping[str, Any]]]:
    """Image sizes with the options that announce them to the model: small ones first, its own last."""
    import timm
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name.partition(".")[0])
    own = int(config.input_size[-1]) if config is not None else 224
    takes_size = "img_size" in inspect.signature(timm.model_entrypoint(name)).parameters
    fixed = takes_size or (config is not None and config.fixed_input_size)
    small = [size for size in (SIZE, 96, 128) if size < own]
    tried: list[tuple[int, Mapping[str, Any]]] = [(size, {"img_size": size}) for size in small if fixed]
    tried += [(size, {}) for size in small if not fixed]
    return [*tried, (own, {})]


def _runs(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether the model accepts the inputs, in training too, where batch norm needs more than one value."""
    mode = model.training
    try:
        with torch.no_grad():
            model.eval()(*inputs)
        return True
    except Exception:
        return False
    finally:
        model.train(mode)


def images(size: int, channels: int = 3) -> tuple[Tensor, ...]:
    """A batch of two square images."""
    return (_draw(2, channels, size, size),)


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
