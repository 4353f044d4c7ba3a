"""Inputs that some models of transformers need besides or instead of those of the zoo."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

Inputs = dict[str, Tensor]

_CHOICES = 3
_SIDES = (32, 224)


def candidates(model: nn.Module, config: Any, inputs: Inputs) -> Iterator[Inputs]:
    """Yields the zoo's inputs, then others that the model may take, the most like them first.

    Args:
        model: The model.
        config: Its configuration.
        inputs: What the zoo would pass.
    """
    more = _with_others(model, config, inputs)
    for base in (inputs, more):
        yield base
    for base in (inputs, more):
        yield from _changed(base, config)


def _changed(inputs: Inputs, config: Any) -> Iterator[Inputs]:
    ids, sound = inputs.get("input_ids"), inputs.get("input_values")
    bands, image = inputs.get("input_features"), inputs.get("pixel_values")
    if ids is not None and ids.ndim == 2:
        ends = ids.clone()
        ends[:, -1] = getattr(config, "eos_token_id", None) or 2
        # The end of a text is what some classify it by, and encoder-decoders then make the decoder's tokens of it.
        yield {**{name: value for name, value in inputs.items() if name != "decoder_input_ids"}, "input_ids": ends}
        yield {name: _for_each_choice(value) for name, value in inputs.items()}
    if sound is not None and sound.ndim == 2:
        yield {**inputs, "input_values": sound[:, None]}
        yield {**inputs, "input_values": torch.cat([sound] * 3, dim=-1)}
    if bands is not None and bands.ndim == 3:
        yield {**inputs, "input_features": bands.mT.contiguous()}
        for name, mask in (("attention_mask", torch.long), ("input_features_mask", torch.long)):
            for features in (bands, bands.mT.contiguous()):
                yield {**inputs, "input_features": features, name: torch.ones(features.shape[:2], dtype=mask)}
        for number in _numbers(config, "num_mel_bins"):
            yield {**inputs, "input_features": torch.randn(2, 64, number, generator=_generator())}
    if image is not None and image.ndim == 4:
        for side in _SIDES:
            yield {**inputs, "pixel_values": torch.randn(2, image.shape[1], side, side, generator=_generator())}
        yield {**inputs, "pixel_values": torch.stack([image, image.flip(0)], 1)}


def _for_each_choice(value: Tensor) -> Tensor:
    return torch.stack([value.roll(number, 0) for number in range(_CHOICES)], 1)


def _with_others(model: nn.Module, config: Any, inputs: Inputs) -> Inputs:
    """Returns the inputs with those of other modalities that ``forward`` takes."""
    known = inspect.signature(model.forward).parameters
    vision = getattr(config, "vision_config", config)
    side = getattr(vision, "image_size", 64)
    side = side if isinstance(side, int) else 64
    generator = _generator()
    others = {
        "input_ids": torch.randint(3, 64, (2, 16), generator=generator),
        "pixel_values": torch.randn(2, 3, side, side, generator=generator),
        "attention_mask": torch.ones(2, 16, dtype=torch.long),
        "bbox": torch.zeros(2, 16, 4, dtype=torch.long),
        "decoder_input_ids": torch.randint(3, 64, (2, 8), generator=generator),
    }
    return {**{name: value for name, value in others.items() if name in known}, **inputs}


def _numbers(config: Any, name: str) -> Iterator[int]:
    """The values of a field in a configuration and in those inside of it."""
    for inner in (config, *(getattr(config, key, None) for key in getattr(config, "sub_configs", {}))):
        value = getattr(inner, name, None)
        if isinstance(value, int):
            yield value


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
