"""What all workers must compute together: the original model in one process, with the masks of each worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from sdp_compile.planning.plan import Plan

Batch = tuple[Tensor, Tensor, Tensor]
"""Inputs, the targets of their tokens, and which tokens count."""


def micro_batch(name: str, seed: int, size: int) -> Batch:
    """A batch of which only some tokens count, at least one."""
    generator = torch.Generator().manual_seed(seed)
    if name == "cnn":
        x = torch.randn(size, 1, 6, 6, dtype=torch.float64, generator=generator)
        shape: tuple[int, ...] = (size,)
        classes = 5
    elif name == "stub":
        x = torch.randn(size, 6, dtype=torch.float64, generator=generator)
        shape, classes = (size,), 5
    else:
        x = torch.randint(0, 13, (size, 7), generator=generator)
        shape, classes = (size, 7), 13
    counts = torch.rand(shape, generator=generator) < 0.6
    counts.view(-1)[0] = True
    return x, torch.randint(0, classes, shape, generator=generator), counts


def tokens(batch: Batch) -> int:
    return int(batch[2].sum())


def total_loss(output: Tensor, batch: Batch) -> Tensor:
    """The sum over the tokens that count."""
    _, targets, counts = batch
    losses = F.cross_entropy(output.flatten(0, -2), targets.flatten(), reduction="none")
    return (losses * counts.flatten()).sum()


def oracle(
    model: nn.Module,
    plan: Plan,
    batches: Mapping[int, Sequence[Batch]],
    weigh: Callable[[Tensor, Mapping[str, Tensor], int], Any],
) -> dict[str, Tensor]:
    """Each element's gradient of the sum over all tokens of its owners, weighed.

    Args:
        model: The original.
        plan: Who owns what.
        batches: Those of each worker.
        weigh: Returns the gradient from the sum over the owners, and from (owners, tokens) of each element by name.
    """
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    owners, counted = ({name: torch.zeros_like(value) for name, value in parameters.items()} for _ in range(2))
    for rank, own in batches.items():
        masks = {name: plan.mask(name, rank).double() for name in parameters}
        leaves = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
        for batch in own:
            buffers = {name: value.clone() for name, value in model.named_buffers()}
            used = {name: leaves[name] * masks[name] for name in leaves} if plan.masking == "forward" else leaves
            output = functional_call(model, {**used, **buffers}, (batch[0],), tie_weights=True)
            total_loss(output, batch).backward()
        for name, leaf in leaves.items():
            total[name] += masks[name] * (0 if leaf.grad is None else leaf.grad)
            owners[name] += masks[name]
            counted[name] += masks[name] * sum(map(tokens, own))
    return {name: weigh(total[name], {"owners": owners[name], "tokens": counted[name]}, len(batches)) for name in total}


def token_mean(total: Tensor, of: Mapping[str, Tensor], workers: int) -> Tensor:
    return total / of["tokens"]


def sum_of(everything: int) -> Callable[[Tensor, Mapping[str, Tensor], int], Tensor]:
    """Of losses that were divided by the number of all workers' tokens."""
    return lambda total, of, workers: total / everything * workers / of["owners"]


def check(module: Any, expected: Mapping[str, Tensor], what: str, masked: bool = False) -> None:
    """The gradients of this worker's slices."""
    for name, parameter in module.named_parameters():
        gradient = parameter.grad
        if name in ("frozen", "idle"):
            continue
        assert gradient is not None, (what, name)
        mask = module.plan.mask(name, module.rank)
        found = gradient[mask] if masked else gradient.reshape(-1)
        torch.testing.assert_close(
            found, expected[name][mask], rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{what}, {name}: {text}"
        )
