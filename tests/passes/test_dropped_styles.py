"""Whatever words add a branch to a skip path: it is a block, and dropping it is the same as parameters that are 0."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdp_compile.capture import capture
from sdp_compile.structure.blocks.finding import find_blocks
from tests.block_styles import NO_BLOCKS, STYLES, Net
from tests.passes.dropping import Prepared


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", STYLES)
def test_a_branch_in_other_words_is_a_block_and_exact(name: str) -> None:
    style, expected = STYLES[name]
    prepared = Prepared(lambda: (Net(style), (torch.randn(4, 6),)))
    blocks = prepared.blocks.blocks
    assert [{name.partition(".")[0] for name in block.parameters} for block in blocks] == expected
    every = set(range(len(blocks)))
    for dropped in ({0}, every) if len(every) > 1 else (every,):
        prepared.assert_equals_oracle(dropped, "sliced")
    prepared.assert_equals_oracle(every, "masked")


class Complex(nn.Module):
    """A residual add of complex activations."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.branch = (nn.Linear(6, 6, dtype=torch.complex128) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.enter(x)
        return torch.view_as_real(h + self.branch(h.sin()))


def test_a_branch_of_complex_activations_is_a_block_and_exact() -> None:
    prepared = Prepared(lambda: (Complex(), (torch.randn(4, 6, dtype=torch.complex128),)))
    assert [set(block.parameters) for block in prepared.blocks.blocks] == [{"branch.weight", "branch.bias"}]
    prepared.assert_equals_oracle({0}, "sliced")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", NO_BLOCKS)
def test_what_is_not_provably_right_is_no_block(name: str) -> None:
    assert not find_blocks(capture(Net(NO_BLOCKS[name]), (torch.randn(4, 6),))).blocks
