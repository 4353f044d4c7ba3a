"""transformers: every class in the mappings of its AutoModel classes, from a configuration with small fields."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from sdp_compile.models.language_inputs import example_inputs
from sdp_compile.models.transformers_config import default_config
from tools.packages.transformers_inputs import candidates


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
    """Returns a model in training mode, with the first inputs that it takes."""
    import transformers

    kind, _, class_name = name.partition(":")
    config, _origin = default_config(kind, "small", ())
    cls = getattr(transformers, class_name)
    if getattr(cls, "_can_set_experts_implementation", bool)():
        config._experts_implementation = "batched_mm"  # the default, a fused operator, knows no float64
    if class_name.endswith("SequenceClassification") and config.get_text_config().pad_token_id is None:
        config.get_text_config().pad_token_id = 0  # they find the last token of a text by what comes after it
    model: nn.Module = cls(config).train()
    inputs = example_inputs(model, config)
    taken = next((one for one in candidates(model, config, inputs) if _runs(model, one)), inputs)
    return model, taken


def _bears(name: str, kind: str) -> bool:
    """Whether a class is named after a type."""
    return name.lower().startswith(kind.replace("-", "").replace("_", ""))


def _runs(model: nn.Module, inputs: dict[str, Tensor]) -> bool:
    try:
        with torch.no_grad():
            model(**inputs)
        return True
    except Exception:  # the library raises many types
        return False
