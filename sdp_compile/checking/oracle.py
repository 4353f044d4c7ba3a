"""The oracle: the user's original eager model, run with the parameters ``mask * theta``.

It reads the original module, its parameters and the plan's masks only, and none of the captured graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

_DROPPING_CLASSES = ("drop", "stochastic", "depth")
_PROBABILITIES = ("p", "rate", "prob")
_RANDOM_SWITCHES = ("apply_spec_augment", "mask_time_prob", "mask_feature_prob", "router_jitter_noise", "jitter_noise")


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draws all weights and running statistics at random, because heads and scales initialised to 0 hide errors."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: torch.Tensor, scale: float, shift: float = 0.0) -> None:
        dtype = torch.complex128 if tensor.is_complex() else torch.float64
        tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=dtype) * scale + shift)

    for parameter in model.parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            fan = parameter.shape[1:].numel() if parameter.ndim > 1 else 16
            draw(parameter, max(1, fan) ** -0.5)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            draw(buffer, 0.1)
        elif name.endswith("running_var"):
            draw(buffer, 0.05, 1.0)
    return model


def disable_randomness(model: nn.Module) -> tuple[str, ...]:
    """Sets all drop probabilities of the model to 0 in place, and returns the names of the changed attributes."""
    changed = []
    configs: dict[int, Any] = {}
    for path, module in model.named_modules():
        by_class = any(word in type(module).__name__.lower() for word in _DROPPING_CLASSES)
        names = [name for name in vars(module) if _drops(name) or (by_class and name in _PROBABILITIES)]
        changed += [f"{path}.{name}".lstrip(".") for name in _zeroed(module, names)]
        config = vars(module).get("config")
        if hasattr(config, "to_dict"):
            configs.setdefault(id(config), config)
    for config in configs.values():
        changed += [f"config.{name}" for name in _zeroed(config, [name for name in vars(config) if _drops(name)])]
    return tuple(changed)


def _drops(name: str) -> bool:
    return "drop" in name.lower() or name in _RANDOM_SWITCHES


def _zeroed(holder: Any, names: Iterable[str]) -> list[str]:
    """Sets the attributes that are positive probabilities or switches to 0, and returns their names."""
    changed = []
    for name in names:
        value = getattr(holder, name, None)
        if (isinstance(value, float) and value > 0) or (value is True and name in _RANDOM_SWITCHES):
            setattr(holder, name, False if value is True else 0.0)
            changed.append(name)
    return changed


@dataclass
class Run:
    """Outputs, parameter gradients and buffers of one forward and backward pass."""

    outputs: list[torch.Tensor]
    gradients: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]


def tensors_of(output: Any) -> list[torch.Tensor]:
    """Returns the floating-point tensors of a model's result, in order; complex ones as real and imaginary parts."""
    tensors = [t for t in pytree.tree_leaves(output) if isinstance(t, torch.Tensor)]
    return [
        torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
        for t in tensors
        if t.is_floating_point() or t.is_complex()
    ]


def scalar(outputs: list[torch.Tensor]) -> torch.Tensor:
    """Returns a loss to which every finite output element contributes with a different weight."""
    total = torch.zeros((), dtype=outputs[0].dtype, device=outputs[0].device)
    for number, output in enumerate(outputs):
        drawn = torch.randn(output.shape, generator=torch.Generator().manual_seed(number), dtype=output.dtype)
        weights = drawn.to(output.device)
        if not torch.isfinite(output.detach()).all():
            output = output.masked_fill(torch.isinf(output.detach()), 0.0)  # masked logits are -inf on purpose
        total = total + (output * weights).sum()
    return total


def run_original(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    masks: Callable[[str], torch.Tensor],
    calls: int = 1,
) -> Run:
    """Runs the original model in its current mode with the parameters ``mask * theta``, without changing it.

    Args:
        model: The original model.
        args: Positional arguments.
        kwargs: Keyword arguments.
        masks: Returns the mask of a parameter, given by name.
        calls: How often it is called, each time with the buffers that the last call left. The last one counts.
    """
    parameters = {
        name: (p.detach() * masks(name).to(p.device)).requires_grad_(p.requires_grad)
        for name, p in model.named_parameters()
    }
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for _ in range(calls):
        outputs = tensors_of(functional_call(model, {**parameters, **buffers}, args, dict(kwargs)))
    return Run([o.detach() for o in outputs], _gradients(outputs, parameters), buffers)


def run_compiled(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], calls: int = 1) -> Run:
    """Runs the compiled module in its current mode, restores its buffers, and returns the last of several calls."""
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    parameters = dict(module.named_parameters())
    for _ in range(calls):
        outputs = tensors_of(module(*args, **kwargs))
    gradients = _gradients(outputs, parameters)
    after = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            buffer.copy_(before[name])
    return Run([o.detach() for o in outputs], gradients, after)


def _gradients(outputs: list[torch.Tensor], parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gradient of the loss for each parameter that has one."""
    wanted = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    if not wanted or not any(output.requires_grad for output in outputs):
        return {}
    gradients = torch.autograd.grad(scalar(outputs), list(wanted.values()), allow_unused=True)
    return {name: g for name, g in zip(wanted, gradients, strict=True) if g is not None}
