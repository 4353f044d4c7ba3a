"""transformers: every class in the mappings of its AutoModel classes, from a configuration with small fields."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from sdp_compile.models.language_inputs import example_inputs
from sdp_compile.models.transformers_config import default_config


def names(_seed: int) -> list[str]:
    """Returns ``TYPE:CLASS`` for each class, first one class of every type."""
    from transformers.models.auto import modeling_auto

    found: dict[str, list[str]] = {}
    for mapping in sorted(vars(modeling_auto)):
        if mapping.startswith("MODEL_") and mapping.endswith("MAPPING_NAMES"):
            for kind, classes in vars(modeling_auto)[mapping].items():
                for name in [classes] if isinstance(classes, str) else classes:
                    if name not in found.setdefault(kind, []):
                        found[kind].append(name)
    rounds = range(max(map(len, found.values())))
    listed: dict[str, str] = {}  # a class may belong to several types
    for number in rounds:
        for kind, classes in sorted(found.items()):
            if number < len(classes):
                listed.setdefault(classes[number], f"{kind}:{classes[number]}")
    return list(listed.values())


def build(name: str) -> tuple[nn.Module, Any]:
    """Returns a model in training mode, with the inputs that its task needs."""
    import transformers

    kind, _, class_name = name.partition(":")
    config, _origin = default_config(kind, "small", ())
    cls = getattr(transformers, class_name)
    if getattr(cls, "_can_set_experts_implementation", bool)():
        config._experts_implementation = "batched_mm"  # the default, a fused operator, knows no float64
    model: nn.Module = cls(config).train()
    inputs = example_inputs(model, config)
    if not _runs(model, inputs) and _runs(model, more := _with_others(model, config, inputs)):
        return model, more
    return model, inputs


def _with_others(model: nn.Module, config: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the inputs with those of other modalities that ``forward`` takes."""
    generator = torch.Generator().manual_seed(0)
    known = inspect.signature(model.forward).parameters
    vision = getattr(config, "vision_config", config)
    side = getattr(vision, "image_size", 64)
    side = side if isinstance(side, int) else 64
    others = {
        "input_ids": torch.randint(3, 64, (2, 16), generator=generator),
        "pixel_values": torch.randn(2, 3, side, side, generator=generator),
        "attention_mask": torch.ones(2, 16, dtype=torch.long),
        "bbox": torch.zeros(2, 16, 4, dtype=torch.long),
        "decoder_input_ids": torch.randint(3, 64, (2, 8), generator=generator),
    }
    return {**{name: value for name, value in others.items() if name in known}, **inputs}


def _runs(model: nn.Module, inputs: dict[str, Tensor]) -> bool:
    try:
        with torch.no_grad():
            model(**inputs)
        return True
    except Exception:  # the library raises many types
        return False
