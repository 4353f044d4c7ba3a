"""timm: a small model of every module file, and some drawn at random."""

from __future__ import annotations

import random
from typing import Any

from torch import nn

_SMALL = (
    "atto",
    "femto",
    "pico",
    "nano",
    "xxtiny",
    "xxs",
    "xtiny",
    "tiny",
    "mini",
    "xs",
    "small",
    "_s",
    "050",
    "18",
    "b0",
)
"""Words in the names of small models, the smallest first."""

_DRAWN = 100


def names(seed: int) -> list[str]:
    """Returns the models: one per module file of timm, then 100 others drawn with ``seed``."""
    import timm

    first = [
        min(timm.list_models(module=file), key=_size) for file in timm.list_modules() if timm.list_models(module=file)
    ]
    others = sorted(set(timm.list_models()) - set(first))
    small = [name for name in others if not any(word in name for word in ("giant", "huge", "gigantic", "enormous"))]
    return [*first, *random.Random(seed).sample(small, _DRAWN)]


def build(name: str) -> tuple[nn.Module, Any]:
    """Returns a model with images of the smallest size that it takes."""
    from sdp_compile.models.timm_models import timm_model

    loaded = timm_model(name, "small")
    return loaded.model, loaded.example_inputs


def _size(name: str) -> tuple[int, int, str]:
    rank = next((number for number, word in enumerate(_SMALL) if word in name), len(_SMALL))
    return rank, len(name), name
