"""The oracle of every exactness test: the user's original eager model, run with the parameters ``mask * theta``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from sdp_compile.plan import Plan


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draws every weight and running statistic at random: zero-initialised heads and scales would hide errors."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: torch.Tensor, scale: float, shift: float = 0.0) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * scale + shift)

    with torch.no_grad():
        for parameter in model.parameters():
            fan = parameter.shape[1:].numel() if parameter.ndim > 1 else 16
            draw(parameter, fan**-0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                draw(buffer, 0.1)
            elif name.endswith("running_var"):
                draw(buffer, 0.05, 1.0)
    return model


def without_randomness(model: nn.Module) -> nn.Module:
    """Switches dropout and stochastic depth off, so that two runs can be compared."""
    for module in model.modules():
        for name in ("p", "drop_prob", "dropout", "attn_dropout", "attention_dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


@dataclass
class Run:
    """Outputs, parameter gradients and buffers of one forward and backward."""

    outputs: list[torch.Tensor]
    gradients: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]


def tensors_of(output: Any) -> list[torch.Tensor]:
    return [t for t in pytree.tree_leaves(output) if isinstance(t, torch.Tensor) and t.is_floating_point()]


def scalar(outputs: list[torch.Tensor]) -> torch.Tensor:
    """A loss to which every output element contributes differently."""
    total = torch.zeros((), dtype=outputs[0].dtype)
    for number, output in enumerate(outputs):
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(number), dtype=output.dtype)
        total = total + (output * weights).sum()
    return total


def run_original(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    masks: Callable[[str], torch.Tensor],
) -> Run:
    """The original model in its current mode with the parameters ``mask * theta``; leaves the model as it is."""
    parameters = {
        name: (p.detach() * masks(name)).requires_grad_(p.is_floating_point()) for name, p in model.named_parameters()
    }
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    outputs = tensors_of(functional_call(model, {**parameters, **buffers}, args, dict(kwargs)))
    gradients = torch.autograd.grad(scalar(outputs), list(parameters.values()), allow_unused=True)
    found = {name: g for name, g in zip(parameters, gradients, strict=True) if g is not None}
    return Run([o.detach() for o in outputs], found, buffers)


def run_compiled(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Run:
    """The compiled module in its current mode; leaves its buffers as they were."""
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    parameters = dict(module.named_parameters())
    outputs = tensors_of(module(*args, **kwargs))
    gradients = torch.autograd.grad(scalar(outputs), list(parameters.values()), allow_unused=True)
    found = {name: g for name, g in zip(parameters, gradients, strict=True) if g is not None}
    after = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            buffer.copy_(before[name])
    return Run([o.detach() for o in outputs], found, after)


def relative_error(found: torch.Tensor, expected: torch.Tensor, floor: float = 1e-12) -> float:
    """The largest deviation, relative to the largest element expected, or to ``floor`` where that is larger."""
    if found.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    scale = expected.abs().max().clamp(min=floor)
    return float((found - expected).detach().abs().max() / scale)


def owned(full: torch.Tensor, plan: Plan, name: str, rank: int) -> torch.Tensor:
    """The elements of a full tensor that ``rank`` owns, in ascending order, as a flat tensor."""
    return full[plan.mask(name, rank)]


def assert_exact(
    module: nn.Module,
    model: nn.Module,
    plan: Plan,
    rank: int,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    tolerance: float = 1e-9,
) -> None:
    """Outputs, owned gradients and running statistics on owned channels equal the oracle's, in both modes."""
    names = {name for name, _ in module.named_parameters()}
    for training in (True, False):
        model.train(training)
        module.train(training)
        expected = run_original(model, args, kwargs, lambda name: plan.mask(name, rank))
        found = run_compiled(module, args, kwargs)
        assert len(found.outputs) == len(expected.outputs)
        for a, b in zip(found.outputs, expected.outputs, strict=True):
            assert relative_error(a, b) < tolerance, f"output, rank {rank}, training {training}"
        # Some gradients are 0 but for rounding (a key bias under softmax): measure those against the model's scale.
        floor = 1e-5 * max((float(g.abs().max()) for g in expected.gradients.values()), default=1.0)
        for name, gradient in expected.gradients.items():
            mine = owned(gradient, plan, name, rank)
            if name not in names:
                assert not mine.numel(), f"{name} is missing on rank {rank}"
                continue
            if name not in found.gradients:
                assert not mine.any(), f"{name} has no gradient on rank {rank}"
                continue
            error = relative_error(found.gradients[name].reshape(-1), mine, floor)
            assert error < tolerance, f"gradient of {name}, rank {rank}, training {training}: {error:.1e}"
        assert set(found.gradients) - set(expected.gradients) == set()
        persistent = set(model.state_dict())
        for name, buffer in found.buffers.items():
            if name in persistent and name in expected.buffers and buffer.is_floating_point():
                mine = owned(expected.buffers[name], plan, name, rank)
                assert relative_error(buffer.reshape(-1), mine) < tolerance, f"buffer {name}, rank {rank}"
