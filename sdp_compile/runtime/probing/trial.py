"""Steps optimizers on parameters of their own, to compare what they do with the whole and with slices of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from sdp_compile.runtime.probing.replica import Replicate

Part = Callable[[int, Tensor], Tensor | None]
"""Takes the number of a parameter and a tensor of its shape; returns the part to hold of it, None to leave it out."""


@dataclass(frozen=True)
class Setting:
    """Under what circumstances an optimizer is tried.

    Attributes:
        device: Where the parameters are.
        flat: Whether it gets slices as flat runs of elements, in parameters that do not require gradients.
        closure: Whether its step is called with a closure.
    """

    device: torch.device
    flat: bool = False
    closure: bool = False


@dataclass(frozen=True)
class Extent:
    """What an optimizer is tried on.

    Attributes:
        shapes: The shapes of the parameters.
        steps: How often it steps.
        drift: How large the mean of an element's gradients is, compared to what changes in them.
        size: A factor of all gradients.
    """

    shapes: tuple[tuple[int, ...], ...]
    steps: int
    drift: float
    size: float = 1.0

    def only(self, dimensions: Collection[int]) -> Extent:
        """Returns the same with parameters of these numbers of dimensions only."""
        return replace(self, shapes=tuple(shape for shape in self.shapes if len(shape) in dimensions))


class Trial:
    """Steps optimizers of one kind from the same values with the same gradients, held as a whole or in part.

    Gradients are of very different scale, and depend on the value of their own element alone.
    """

    def __init__(self, replicate: Replicate, extent: Extent, dtype: torch.dtype, setting: Setting) -> None:
        """Draws values and gradients.

        Args:
            replicate: Builds an optimizer.
            extent: What the optimizer is tried on.
            dtype: The dtype of the parameters.
            setting: Under what circumstances it is tried.
        """
        self.extent = extent
        self.setting = setting
        self._replicate = replicate
        self._eps = torch.finfo(dtype).eps
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        def scale(shape: tuple[int, ...]) -> Tensor:
            result = extent.size * 10 ** normal(*shape).clamp(-2, 1)
            result[0] = 0  # a unit without gradient
            result[-1] *= 10
            return result

        def noise(shape: tuple[int, ...]) -> Tensor:
            return extent.drift * normal(*shape) + normal(extent.steps, *shape)

        self.values = [normal(*shape).to(setting.device, dtype) for shape in extent.shapes]
        self._scales = [scale(shape).to(setting.device, dtype) for shape in extent.shapes]
        self._noises = [noise(shape).to(setting.device, dtype) for shape in extent.shapes]

    @cached_property
    def whole(self) -> dict[int, Tensor]:
        """The values of the whole parameters after the steps, by number."""
        return self.stepped(lambda number, tensor: tensor)

    def everything(self, part: Part) -> dict[tuple[int, str], Tensor]:
        """Returns the values of the held parts after the steps, and the state of each of their elements.

        Args:
            part: Which part of each parameter is held.
        """
        parameters, optimizer = self._step(part)
        result = {(number, "value"): parameter.detach() for number, parameter in parameters.items()}
        for number, parameter in parameters.items():
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    result[number, str(key)] = value
        return result

    def stepped(
        self, part: Part, without_gradient: Collection[int] = (), disturbed: Collection[int] = (), seed: int = 0
    ) -> dict[int, Tensor]:
        """Returns the values of the held parts after the steps, by number.

        Args:
            part: Which part of each parameter is held.
            without_gradient: Parameters whose gradient is None.
            disturbed: Parameters with other values, and gradients a hundred times as large.
            seed: Of the random number generators of the CPU.
        """
        parameters, _ = self._step(part, without_gradient, disturbed, seed)
        return {number: parameter.detach() for number, parameter in parameters.items()}

    def _step(
        self, part: Part, without_gradient: Collection[int] = (), disturbed: Collection[int] = (), seed: int = 0
    ) -> tuple[dict[int, nn.Parameter], Optimizer]:
        torch.default_generator.manual_seed(seed)  # those of accelerators go on, and so differ each time
        random.seed(seed)
        np.random.seed(seed)
        parameters: dict[int, nn.Parameter] = {}
        terms: dict[int, tuple[Tensor, list[Tensor]]] = {}
        for number, value in enumerate(self.values):
            held = part(number, value)
            if held is None:
                continue
            held, factor = (held + 1, 100) if number in disturbed else (held.clone(), 1)
            parameters[number] = nn.Parameter(held, requires_grad=not self.setting.flat)
            pieces = [part(number, tensor) for tensor in (self._scales[number] * factor, *self._noises[number])]
            scale, *noise = [piece for piece in pieces if piece is not None]
            terms[number] = scale, noise
        optimizer = self._replicate(list(parameters.values()))
        if optimizer.defaults.get("differentiable"):  # autograd records its step
            for parameter in parameters.values():
                parameter.requires_grad_(False)

        def loss(step: int) -> Tensor:
            result = torch.zeros((), dtype=self.values[0].dtype, device=self.setting.device)
            for number, (scale, noise) in terms.items():
                if number not in without_gradient:
                    slope = noise[step]
                    if self.setting.closure:  # of a loss that is a sum over elements
                        value = parameters[number].detach()
                        result += (scale * (slope * value + value.cosh().log())).sum()
                        slope = slope + value.tanh()
                    parameters[number].grad = scale * slope
            return result

        for step in range(self.extent.steps):
            if self.setting.closure:
                closure: Any = partial(loss, step)  # torch declares that it returns a float
                optimizer.step(closure)
            else:
                loss(step)
                optimizer.step()
        return parameters, optimizer

    def difference(self, found: Tensor, expected: Tensor, start: Tensor) -> float:
        """Returns by how much the values of a part differ from what they should be; 0 if by no more than rounding.

        Args:
            found: The values after the steps.
            expected: What they should be.
            start: The values before the steps.
        """
        apart = (found - expected).abs()
        rounding = 100 * self._eps * expected.abs().max() + self._eps**0.5 * (expected - start).abs()
        return 0.0 if bool((apart <= rounding).all()) else float(apart.nan_to_num(torch.inf).max())
