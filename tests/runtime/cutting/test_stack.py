"""Regions of tensors in a vector: read, written, and noticed by autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sdp_compile.planning.regions import Region
from sdp_compile.runtime.cutting.stack import Stack

STACK = Stack(
    [
        ("a", Region([np.array([0, 2]), np.arange(3)])),
        ("b", Region([np.array([1])])),
        ("a", Region([np.array([1]), np.array([0, 1])])),
        ("b", Region([np.array([], dtype=np.int64)])),
    ]
)


def test_regions_lie_one_after_the_other() -> None:
    tensors = {"a": torch.arange(9.0).view(3, 3), "b": torch.tensor([10.0, 11])}
    flat = torch.full((12,), -1.0)
    STACK.read(flat, tensors)
    assert STACK.numel == 9 and flat.tolist() == [0, 1, 2, 6, 7, 8, 11, 3, 4, -1, -1, -1]
    for a in (torch.zeros(3, 3), torch.zeros(3, 3).T, torch.zeros(3, 3, dtype=torch.float64)):
        b = torch.zeros(2)
        STACK.write(flat, {"a": a, "b": b})
        assert a.tolist() == [[0, 1, 2], [3, 4, 0], [6, 7, 8]] and b.tolist() == [0, 11]


def test_tensors_that_are_not_given_are_left_out() -> None:
    b = torch.zeros(2)
    STACK.write(torch.arange(9.0), {"b": b})
    assert b.tolist() == [0, 6]


def test_autograd_notices_that_a_tensor_was_written() -> None:
    a, b = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(2))
    loss = a.square().sum()
    STACK.write(torch.arange(9.0), {"b": b})
    loss.backward(retain_graph=True)
    STACK.write(torch.arange(9.0), {"a": a, "b": b})
    assert a.is_leaf and a.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_region_may_be_read_twice() -> None:
    """Several workers get the same values."""
    region = Region([np.array([0, 1]), np.arange(3)])
    for a in (torch.randn(3, 3), torch.randn(3, 3).T):
        flat = torch.zeros(12)
        Stack([("a", region), ("a", region)]).read(flat, {"a": a})
        assert torch.equal(flat, torch.cat([a[:2].reshape(-1)] * 2))
