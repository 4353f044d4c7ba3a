"""Gradients that know to which parameter of the full model they belong."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import torch
from torch import Tensor

from sdp_compile.runtime.full_results.gradient import PartialGradient
from sdp_compile.runtime.full_results.norms import first_owned


class OwnedGradient(PartialGradient):
    """The gradient of a worker's slice: an ordinary tensor with the slice's values."""

    def held(self) -> list[Tensor]:
        return [self]

    def counted(self) -> list[Tensor]:
        return first_owned(self, self.parameter_name, self.engine.holdings)

    def following(self, result: Tensor) -> Tensor:
        if type(result) is Tensor:
            mark(result, self.parameter_name, self.engine_ref)
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return copy.deepcopy(_plain(self), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _plain(self).__reduce_ex__(protocol)


def mark(gradient: Tensor | None, name: str, engine: weakref.ref[Any]) -> None:
    """Makes a plain gradient an `OwnedGradient`; leaves others alone.

    Args:
        gradient: The gradient, or None.
        name: The parameter's name in the full model.
        engine: What averages the gradient.
    """
    if type(gradient) is Tensor and gradient.layout == torch.strided:
        gradient.__class__ = OwnedGradient  # the same object: autograd and the engine compare gradients by identity
    if isinstance(gradient, OwnedGradient):
        gradient.parameter_name, gradient.engine_ref = name, engine


def _plain(gradient: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return gradient.as_subclass(Tensor)
