"""Residual adds and branches of small networks, as one sees them in their forward."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdp_compile.capture import capture
from sdp_compile.structure.blocks.finding import find_blocks

Tensor = torch.Tensor


class Shared(nn.Module):
    """One branch after an activation, which is added to the skip path and returned."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        branch = self.layer(x.relu())
        return x + branch, branch


def test_an_add_is_residual_although_its_branch_is_used_elsewhere_too() -> None:
    found = find_blocks(capture(Shared(), (torch.randn(4, 6),)))
    assert not found.blocks
    assert [len(adds) for adds in found.residual_adds.values()] == [1, 1]


class Crossing(nn.Module):
    """A branch in which paths part and meet thirty times: there are 2**30 paths through it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        for _ in range(30):
            h = h.sin() * h.cos()
        return x + h


@pytest.mark.timeout(60)
def test_a_branch_is_searched_once_however_many_paths_it_has() -> None:
    found = find_blocks(capture(Crossing(), (torch.randn(4, 6),)))
    assert [sorted(block.parameters) for block in found.blocks] == [["layer.bias", "layer.weight"]]
