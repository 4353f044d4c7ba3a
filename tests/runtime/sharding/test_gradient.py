"""A sharded gradient accumulates, is zeroed and is converted like a gradient, and cannot be read."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile.errors import SDPError
from sdp_compile.runtime.sharding.gradient import ShardedGradient, held_gradients, local_gradient
from sdp_compile.runtime.sharding.shards import whole


class Engine:
    """Of a single worker."""

    holdings = SimpleNamespace(plan=SimpleNamespace(state={"up.bias": SimpleNamespace(shape=(3,))}))


ENGINE: Any = Engine()


@pytest.fixture
def parameter() -> nn.Parameter:
    result = nn.Parameter(torch.zeros(3))
    gradient = ShardedGradient("up.bias", result, weakref.ref(ENGINE))
    gradient.parts[whole("up.bias", result)] = torch.tensor([1.0, 2.0, 3.0])
    result.grad = gradient
    return result


def test_backward_accumulates_beside_the_shards(parameter: nn.Parameter) -> None:
    assert local_gradient(parameter) is None
    for _ in range(2):
        (parameter * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    fresh = local_gradient(parameter)
    assert fresh is not None and fresh.tolist() == [2, 20, 200]
    assert [part.tolist() for part in held_gradients(parameter)] == [[1, 2, 3]]


@pytest.mark.parametrize("foreach", [True, False])
def test_zeroing_keeps_its_meaning(parameter: nn.Parameter, foreach: bool) -> None:
    parameter.sum().backward()
    torch.optim.SGD([parameter], lr=1.0, foreach=foreach).zero_grad(set_to_none=False)
    assert local_gradient(parameter) is None
    assert [part.tolist() for part in held_gradients(parameter)] == [[0, 0, 0]]
    torch.optim.SGD([parameter], lr=1.0).zero_grad()
    assert held_gradients(parameter) == []


def test_a_conversion_converts_the_shards(parameter: nn.Parameter) -> None:
    gradient = parameter.grad
    assert gradient is not None
    converted = gradient.to(torch.float64)
    assert isinstance(converted, ShardedGradient) and converted.dtype == torch.float64
    assert [part.dtype for part in converted.parts.values()] == [torch.float64]


def test_scaling_and_clamping_reach_the_shards(parameter: nn.Parameter) -> None:
    gradient = parameter.grad
    assert gradient is not None
    gradient.mul_(torch.tensor(2.0)).div_(4)
    torch._foreach_mul_([gradient, plain := torch.ones(1)], torch.tensor(10.0))
    assert [part.tolist() for part in held_gradients(parameter)] == [[5, 10, 15]] and plain == 10
    for foreach in (False, True):
        nn.utils.clip_grad_value_([parameter], 12.0 - 4 * foreach, foreach=foreach)
        assert [part.tolist() for part in held_gradients(parameter)] == [[5, 8, 8] if foreach else [5, 10, 12]]
    parameter.sum().backward()
    gradient.mul_(3)
    fresh = local_gradient(parameter)
    assert fresh is not None and fresh.tolist() == [3, 3, 3]
    with pytest.raises(SDPError, match=r"'up\.bias' was accumulated"):
        gradient.clamp_(max=1)


def test_a_detached_gradient_is_the_same_gradient(parameter: nn.Parameter) -> None:
    gradient = parameter.grad
    assert gradient is not None
    for detached in (gradient.detach(), gradient.data):
        assert isinstance(detached, ShardedGradient)
        assert [part.tolist() for part in detached.held()] == [[1, 2, 3]]
        assert detached.norm() == torch.tensor([1.0, 2.0, 3.0]).norm()


def test_reading_says_what_to_do(parameter: nn.Parameter) -> None:
    gradient = parameter.grad
    assert gradient is not None and repr(gradient) == "ShardedGradient('up.bias', shape=[3])"
    with pytest.raises(SDPError, match=r"'up\.bias' cannot be read.*Delete the ShardedOptimizer"):
        gradient.sum()
    with pytest.raises(SDPError, match=r"'up\.bias' cannot be read"):
        gradient.mul_(torch.ones(3))
