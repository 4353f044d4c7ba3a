"""A small model, compiled by every worker as a user would, and how it is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import sdp_compile as sdp

POLICY = sdp.NeuronPolicy(coverage=0.5)


def original(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 4)).double()


def compiled(model: nn.Module | None = None) -> sdp.SDPModule:
    """Compiles the model. What this worker draws afterwards differs from what the others draw."""
    module = sdp.compile(original() if model is None else model, POLICY, (torch.randn(6, 8).double(),))
    torch.manual_seed(100 + dist.get_rank())
    return module


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 8).double(), torch.randn(6, 4).double()


def backward(module: nn.Module, factor: float = 1.0) -> None:
    x, y = batch()
    (F.mse_loss(module(x), y) * factor).backward()


def train(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int = 3,
    between: Callable[[nn.Module], Any] = lambda module: None,
) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        backward(module)
        between(module)
        optimizer.step()


def raised(call: Callable[[], Any]) -> str:
    """The class and text of the error of a call; empty if there is none."""
    try:
        call()
    except sdp.SDPError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def owned(module: sdp.SDPModule) -> dict[str, Tensor]:
    """This worker's parameters in full tensors, NaN where it owns nothing."""
    result = {}
    for name, parameter in module.named_parameters():
        full = torch.full(module.plan.state[name].shape, math.nan, dtype=parameter.dtype)
        full[module.plan.mask(name, module.rank)] = parameter.detach().reshape(-1)
        result[name] = full
    return result


def assert_owners_agree(workers: list[Mapping[str, Tensor]]) -> None:
    """Every element has the same bits on all of its owners, and has several."""
    for name in workers[0]:
        values = torch.stack([own[name] for own in workers])
        first = values.nan_to_num(-math.inf).amax(0)
        assert ((values == first) | values.isnan()).all(), name
        assert ((~values.isnan()).sum(0) > 1).all(), name
