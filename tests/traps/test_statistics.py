"""Gradients changed by a statistic of a slice: owners with equal slices would agree on what the full model has not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn

from tests.distributed import run_workers
from tests.traps.small import backward, compiled, original, raised


def agc(parameters: list[nn.Parameter]) -> None:
    adaptive_clip_grad(parameters, 0.01)


def centralised(parameters: list[Any]) -> None:
    for parameter in parameters:
        if parameter.dim() > 1:
            parameter.grad.sub_(parameter.grad.mean(dim=1, keepdim=True))


def standardised(parameters: list[Any]) -> None:
    for parameter in parameters:
        parameter.grad = parameter.grad / (parameter.grad.std() + 1e-8)


def by_the_mean(parameters: list[Any]) -> None:
    torch._foreach_div_([p.grad for p in parameters], [p.grad.abs().mean() for p in parameters])


def trust_ratio(parameters: list[Any]) -> None:
    for parameter in parameters:
        parameter.grad.mul_(0.01 * parameter.data.norm() / parameter.grad.norm())


def unit_norm(parameters: list[Any]) -> None:
    for parameter in parameters:
        parameter.grad.div_(parameter.grad.norm())


def sparsified(parameters: list[Any]) -> None:
    for parameter in parameters:
        least = (parameter.grad**2).topk(2).values.amin()
        parameter.grad.copy_(torch.where(parameter.grad**2 >= least, parameter.grad, 0))


REFUSED = {
    agc: "norm() of the gradient of '0.bias'",
    centralised: "mean() of the gradient of '2.weight'",
    standardised: "std() of the gradient of '0.weight'",
    by_the_mean: "mean() of the gradient of '0.weight'",
    trust_ratio: "norm() of the gradient of '0.weight'",
    unit_norm: "norm() of the gradient of '0.weight'",
    sparsified: "topk() of the gradient of '0.bias'",
}


def along_whole_dimensions(parameters: list[Any]) -> None:
    """What the worker holds whole: rows of the first weight, and the last bias."""
    parameters[0].grad.sub_(parameters[0].grad.mean(dim=1, keepdim=True))
    parameters[0].grad.div_(parameters[0].grad.norm(dim=1, keepdim=True))
    parameters[3].grad.div_(parameters[3].grad.abs().max())


def read(parameters: list[Any]) -> list[float]:
    """What people log."""
    copy.deepcopy(parameters[0].grad.mean())
    return [f(p.grad).item() for p in parameters for f in (Tensor.mean, Tensor.std, Tensor.norm, Tensor.amax)]


def tried(rank: int) -> tuple[dict[str, str], list[float], list[Tensor]]:
    found = {}
    for change in REFUSED:
        module = compiled()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)

        def step(change: Callable[[Any], Any] = change, module: Any = module, optimizer: Any = optimizer) -> None:
            backward(module)
            change(list(module.parameters()))
            optimizer.step()

        found[change.__name__] = raised(step)
    module = compiled()
    torch.manual_seed(1)  # the same data
    backward(module)
    numbers = read(list(module.parameters()))
    before = [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]
    along_whole_dimensions(list(module.parameters()))
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    after = [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]
    return found, numbers, [*before, *after]


def test_a_gradient_changed_by_a_statistic_of_a_slice_is_refused() -> None:
    for found, numbers, gradients in run_workers(tried, 2):
        for change, text in REFUSED.items():
            assert f"A gradient would be changed by the {text}" in found[change.__name__]
        assert len(numbers) == 4 * len(list(original().parameters())) and all(map(bool, numbers))
        first, last, after = gradients[0], gradients[3], gradients[4:]
        first = first - first.mean(1, keepdim=True)
        torch.testing.assert_close(after[0], first / first.norm(dim=1, keepdim=True))
        torch.testing.assert_close(after[3], last / last.abs().max())
        assert torch.equal(after[1], gradients[1])
