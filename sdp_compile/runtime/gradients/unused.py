"""Which parameters have no gradient: an optimizer leaves them alone, but would step zeros (weight decay, momentum).

A worker packs zeros where it has no gradient, since another one may have some. What no worker has a gradient of must
have none again before a step, as in the original: a head whose output is not part of the loss, for example.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.utils.weak import TensorWeakRef


class Unused:
    """Knows which gradients of one worker are nothing but the zeros of a reduction."""

    def __init__(self) -> None:
        self._made: dict[str, TensorWeakRef] = {}

    def arrived(self, name: str) -> None:
        """Notes that a backward has accumulated a gradient of this parameter."""
        self._made.pop(name, None)

    def missing(self, parameters: Mapping[str, nn.Parameter], names: Iterable[str]) -> list[str]:
        """Returns those of the named parameters of which this worker has no gradient."""
        with torch._C.DisableTorchFunctionSubclass():
            return [name for name in names if parameters[name].requires_grad and self._is_missing(name, parameters)]

    def fill(self, parameters: Mapping[str, nn.Parameter], names: Iterable[str]) -> None:
        """Notes that a reduction has made the gradients of these parameters."""
        found = ((name, parameters[name].grad) for name in names)
        self._made = {name: TensorWeakRef(gradient) for name, gradient in found if gradient is not None}

    @torch.no_grad()
    def drop(self, parameters: Mapping[str, nn.Parameter], names: Iterable[str]) -> list[str]:
        """Drops the zeros in place of the gradients of these parameters, of which no worker has any. Returns which."""
        dropped = [name for name in names if name in self._made and self._is_missing(name, parameters)]
        for name in dropped:
            parameters[name].grad = None
        return dropped

    def _is_missing(self, name: str, parameters: Mapping[str, nn.Parameter]) -> bool:
        gradient = parameters[name].grad
        made = self._made.get(name)
        return gradient is None or (made is not None and made() is gradient)
