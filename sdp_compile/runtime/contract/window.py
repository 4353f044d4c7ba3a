"""Whether what earlier backward passes accumulated is still there, or was zeroed since."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from enum import Enum

import torch
from torch import Tensor, nn

from sdp_compile.runtime.sharding.gradient import ShardedGradient


class Found(Enum):
    """What has become of accumulated gradients."""

    NOTHING = "nothing is there: there were none, or all were zeroed"
    EVERYTHING = "they are there"
    A_PART = "some were zeroed and others not"


class Window:
    """The gradients as the last backward left them.

    Zeroed gradients are None, or zeros that somebody wrote since. So no values are read unless somebody has changed
    gradients between two backward passes.
    """

    def __init__(self) -> None:
        self._noted: dict[str, tuple[weakref.ref[Tensor], int]] = {}

    def note(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Remembers the gradients of parameters that are given by name."""
        gradients = ((name, parameter.grad) for name, parameter in parameters.items())
        self._noted = {name: (weakref.ref(one), one._version) for name, one in gradients if one is not None}

    def forget(self, names: Iterable[str]) -> None:
        """Gradients that were only zeros of a reduction have become None, which nobody has zeroed."""
        for name in names:
            self._noted.pop(name, None)

    def find(self, parameters: Mapping[str, nn.Parameter]) -> Found:
        """Returns what has become of the gradients since `note`."""
        gone, unchanged, changed = False, False, list[Tensor]()
        for name, parameter in parameters.items():
            gradient, noted = parameter.grad, self._noted.get(name)
            if gradient is None:
                gone |= noted is not None
            elif noted is not None and noted[0]() is gradient and noted[1] == gradient._version:
                unchanged = True
            else:
                changed.append(gradient)
        if not unchanged and all(map(_is_zero, changed)):
            return Found.NOTHING
        return Found.A_PART if gone else Found.EVERYTHING


def _is_zero(gradient: Tensor) -> bool:
    held = list(gradient.parts.values()) if isinstance(gradient, ShardedGradient) else [gradient]
    if isinstance(gradient, ShardedGradient) and gradient.fresh is not None:
        held.append(gradient.fresh)
    with torch._C.DisableTorchFunctionSubclass():
        return not any(tensor.any() for tensor in held)
