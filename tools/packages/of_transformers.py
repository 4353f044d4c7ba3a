"""transformers: every class in the mappings of its AutoModel classes, from a configuration with small fields."""

from __future__ import annotations

import inspect
import random
from typing import Any

import torch
from torch import Tensor, nn

from sdp_compile.models.language_inputs import example_inputs
from sdp_compile.models.transformers_config import default_config


def names(seed: int) -> list[str]:
    """Returns ``TYPE:CLASS`` for each class: first one of every folder of the library, then one of every further type.

    Second and further classes of a type come last. Each part is shuffled with ``seed``, so that what is checked first
    is a sample of all.
    """
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    owners: dict[str, str] = {}  # a class may belong to several types
    for mapping in sorted(vars(modeling_auto)):
        if mapping.startswith("MODEL_") and mapping.endswith("MAPPING_NAMES"):
            for kind, classes in sorted(vars(modeling_auto)[mapping].items()):
                for name in [classes] if isinstance(classes, str) else classes:
                    if name not in owners or (_bears(name, kind) and not _bears(name, owners[name])):
                        owners[name] = kind
    found: dict[str, list[str]] = {}
    for name, kind in owners.items():
        found.setdefault(kind, []).append(name)
    folders = {model_type_to_module_name(kind): kind for kind in sorted(found, reverse=True)}
    firsts = {kind if kind in found else other for kind, other in folders.items()}
    rounds = [(0, firsts), (0, set(found) - firsts)]
    rounds += [(number, set(found)) for number in range(1, max(map(len, found.values())))]
    order = random.Random(seed)
    listed = []
    for number, kinds in rounds:
        part = sorted(f"{kind}:{found[kind][number]}" for kind in kinds if number < len(found[kind]))
        listed += order.sample(part, len(part))
    return listed


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


def _bears(name: str, kind: str) -> bool:
    """Whether a class is named after a type."""
    return name.lower().startswith(kind.replace("-", "").replace("_", ""))


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
