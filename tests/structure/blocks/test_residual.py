"""Residual adds and branches of small networks, as one sees them in their forward."""

from __future__ import annotations

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
