"""Subnetwork data parallelism simulated densely in one process: the oracle of training loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sdp_compile.planning.plan import Plan

Loss = Callable[[Callable[..., Any], Any], Tensor]
"""Of a model and a batch."""


def set_gradients(model: nn.Module, plan: Plan, loss: Loss, batches: Sequence[Sequence[Any]]) -> None:
    """Gives the original model the gradients of DESIGN section 2: each element's mean over its owners.

    The original eager model computes them with masked parameters.

    Args:
        model: The original, with the current full parameters.
        plan: Who owns what.
        loss: The loss of one micro-batch; those of a step are summed.
        batches: The micro-batches of each worker.
    """
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    owners = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for rank, own in enumerate(batches):
        masks = {name: plan.mask(name, rank).to(value.dtype) for name, value in parameters.items()}
        leaves = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
        masked = {name: leaf * masks[name] for name, leaf in leaves.items()}
        for batch in own:

            def call(*args: Any, _masked: Mapping[str, Tensor] = masked, **kwargs: Any) -> Any:
                return functional_call(model, dict(_masked), args, kwargs, tie_weights=True)

            loss(call, batch).backward(retain_graph=True)
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            total[name] += leaf.grad * masks[name]
            owners[name] += masks[name]
    for name, parameter in parameters.items():
        parameter.grad = total[name] / owners[name]
