"""Models of timm by name, with random weights: as published, or on the smallest images that they accept."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdp_compile.capture.diagnosis import first_line
from sdp_compile.errors import SDPError, did_you_mean
from sdp_compile.models.configuration import Configuration, Loaded, Size
from sdp_compile.models.vision import SIDE, images
from sdp_compile.models.weightless import build, inputs_for

# Models of more than 200 M parameters are made small at reduced depth.
_SMALL_OPTIONS: Mapping[str, Mapping[str, Any]] = {"deepseek_vit_412m": {"depth": 4}, "gemma4_vit_167m": {"depth": 4}}


def timm_model(name: str, size: Size = "small", weights: bool = True) -> Loaded:
    """Builds a timm model with a batch of two images.

    Args:
        name: a name that ``timm.list_models()`` has, with or without a tag of pretrained weights.
        size: ``full`` takes the input size of the published weights, ``small`` the smallest of a few that it accepts.
        weights: False builds on the meta device.

    Raises:
        SDPError: no such name, or a model that runs at none of the sizes.
    """
    import timm

    known: Iterable[str] = timm.list_models()
    if name.partition(".")[0] not in known:
        raise SDPError(f"timm has no model {name!r}.{did_you_mean(name, known)}")
    return _small(name) if size == "small" else _published(name, weights)


def _published(name: str, weights: bool) -> Loaded:
    import timm
    from timm.models import get_pretrained_cfg

    try:
        model, notes = build(lambda: timm.create_model(name, pretrained=False), weights, f"timm:{name}")
    except Exception as error:
        raise SDPError(f"timm:{name} cannot be built: {first_line(error)}.") from error
    config = get_pretrained_cfg(name.partition(".")[0])
    own = getattr(model, "pretrained_cfg", {}).get("input_size") or (config and config.input_size) or (3, 224, 224)
    inputs = inputs_for(model, images(int(own[-1]), channels=int(own[0])))
    return Loaded(model, inputs, Configuration("published", notes=notes))


def _small(name: str) -> Loaded:
    import timm

    failure: Exception | None = None
    for side, options in _small_sizes(name):
        try:
            model: nn.Module = timm.create_model(name, pretrained=False, **_SMALL_OPTIONS.get(name, {}), **options)
            inputs = images(side, channels=int(model.pretrained_cfg.get("input_size", (3,))[0]))  # type: ignore[union-attr, operator]
            if _runs(model, inputs):
                return Loaded(model, inputs, Configuration("small"))
        except Exception as error:  # the library raises many types, and the next size may do
            failure = error
    text = "it runs at none of the image sizes tried" if failure is None else first_line(failure)
    raise SDPError(f"timm:{name} cannot be built: {text}.") from failure


def _small_sizes(name: str) -> list[tuple[int, Mapping[str, Any]]]:
    """Image sizes with the options that announce them to the model: small ones first, its own last."""
    import timm
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name.partition(".")[0])
    own = int(config.input_size[-1]) if config is not None else 224
    takes_size = "img_size" in inspect.signature(timm.model_entrypoint(name)).parameters
    fixed = takes_size or (config is not None and config.fixed_input_size)
    small = [side for side in (SIDE, 96, 128) if side < own]
    tried: list[tuple[int, Mapping[str, Any]]] = [(side, {"img_size": side}) for side in small if fixed]
    tried += [(side, {}) for side in small if not fixed]
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
