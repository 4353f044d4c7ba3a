"""Runs backward on fake tensors of a device that this machine lacks, where autograd's own engine asks for a stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction


def backward(loss: Tensor) -> None:
    """Writes the gradients of a scalar ``loss``, one node of its graph after the other."""
    assert loss.grad_fn is not None
    grads: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    with torch.no_grad():
        for node in _ordered(loss.grad_fn):
            own = grads.pop(node, None)
            if own is None:
                continue
            if hasattr(node, "variable"):  # a leaf
                node.variable.grad = own[0] if node.variable.grad is None else node.variable.grad + own[0]
                continue
            given = [own.get(number) for number in range(len(node._input_metadata))]
            made = node.apply(*given) if isinstance(node, BackwardCFunction) else node(*given)
            for grad, (target, number) in zip(
                made if isinstance(made, tuple) else (made,), node.next_functions, strict=False
            ):
                if target is None or grad is None:
                    continue
                whole = grads.setdefault(target, {})
                grad = grad.sum_to_size(target._input_metadata[number].shape)  # autograd undoes broadcasts
                whole[number] = grad if number not in whole else whole[number] + grad


def _ordered(root: Any) -> list[Any]:
    """The nodes of the graph, each before those that it passes gradients to."""
    order, seen, stack = [], set(), [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(target, False) for target, _ in node.next_functions if target is not None]
    return order[::-1]
