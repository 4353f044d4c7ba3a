"""Small optimizers, element-wise ones and others that look at more than the element in one way each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, optim
from torch.optim.optimizer import Optimizer


class Own(optim.Optimizer):
    """Plain steps, with what a subclass adds to them."""

    def __init__(self, params: Any, lr: float = 1e-3, **options: Any) -> None:
        super().__init__(params, {"lr": lr, **options})

    def direction(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        return gradient

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(group["lr"] * self.direction(parameter, parameter.grad))
        return loss


class PerElement(Own):
    """Has state, options that are only attributes, and a wrong turn that no option takes."""

    def __init__(self, params: Any, lr: float = 1e-3, *, normalise: bool = False) -> None:
        super().__init__(params, lr)
        self.normalise = normalise

    def direction(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        state = self.state[parameter]
        state["mean"] = gradient if "mean" not in state else 0.9 * state["mean"] + 0.1 * gradient
        return state["mean"] / gradient.norm() if self.normalise else state["mean"].sign()


class PerNumel(Own):
    def direction(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        return gradient / parameter.numel()


class PerTotal(Own):
    """Its constructor counts elements."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, lr)
        self.total = sum(p.numel() for group in self.param_groups for p in group["params"])

    def direction(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        return gradient / self.total


class PerNumber(Own):
    """Its constructor counts parameters."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, lr)
        self.total = sum(len(group["params"]) for group in self.param_groups)

    def direction(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        return gradient / self.total


class Centred(Own):
    def direction(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        return (
            gradient - gradient.mean(tuple(range(1, gradient.dim())), keepdim=True) if gradient.dim() > 1 else gradient
        )


class LargeOnly(Own):
    def direction(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        return gradient / gradient.abs().max() if gradient.numel() >= 4096 else gradient


class GlobalNorm(Own):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.abs().max() for p in held]).max()
        for parameter in held:
            parameter.sub_(1e-2 * parameter.grad / norm)


class MatrixNorm(Own):
    """Takes a norm over all parameters, but of those with two dimensions only."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in held if p.dim() == 2] or [torch.ones(())]).norm()
        for parameter in held:
            parameter.sub_(1e-2 * parameter.grad / (norm if parameter.dim() == 2 else 1))


class OnlyMatrices(Own):
    """Takes nothing else, and one scale for all of them."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, lr)
        assert all(p.dim() == 2 for group in self.param_groups for p in group["params"])

    def direction(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        return gradient / max(p.grad.abs().max() for group in self.param_groups for p in group["params"])


class NotFinite(Own):
    """Goes wrong for small parameters only."""

    def direction(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        return gradient / 0 if parameter.dim() == 2 and parameter.shape[0] < 5 else gradient


class Counting(Own):
    """Steps less the more parameters have a gradient."""

    def direction(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        return gradient / sum(p.grad is not None for group in self.param_groups for p in group["params"])


class Late(Own):
    """Starts to look at whole rows after 30 steps."""

    def direction(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        state = self.state[parameter]
        state["step"] = state.get("step", 0) + 1
        return gradient - gradient.mean() if state["step"] > 30 else gradient


class Noisy(Own):
    def direction(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        return gradient + torch.randn_like(gradient)


class PerLoss(Own):
    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, lr)
        self.loss: Any = 1.0

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if closure is not None:
            self.loss = torch.enable_grad()(closure)().item()
        return super().step()

    def direction(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        return gradient * math.tanh(self.loss / 1000)


class Sharp(Own):
    """Perturbs the weights by the norm of all gradients, and takes the gradient there, as SAM does."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        assert closure is not None
        closure()
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in held]).norm()
        moves = [(p, p.grad / norm) for p in held]
        with torch.no_grad():
            for parameter, move in moves:
                parameter.add_(move)
        closure()
        with torch.no_grad():
            for parameter, move in moves:
                parameter.sub_(move)
        return super().step()


class FlatDiffers(Own):
    """Decays matrices only."""

    def direction(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        return gradient + 0.1 * parameter if parameter.dim() > 1 else gradient


class Around(Own):
    """Wraps another optimizer, which its constructor takes: it can only be copied."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__(inner.param_groups)
        self.inner = inner
        self.param_groups = inner.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


class Still(Own):
    def direction(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient)
