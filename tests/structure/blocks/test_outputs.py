"""Branches with several outputs are one block; what belongs to several branches joins none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdp_compile.capture import capture
from sdp_compile.structure.blocks.block import Blocks
from sdp_compile.structure.blocks.finding import find_blocks
from tests.block_styles import Forecaster, Net, WaveNet, third_reader_of_two_outputs, two_streams

Tensor = torch.Tensor


def blocks_of(model: nn.Module, x: Tensor) -> Blocks:
    return find_blocks(capture(model, (x,)))


def parts_of(found: Blocks) -> list[list[str]]:
    """The layers in each block, without the kinds of their parameters."""
    return [sorted({name.rpartition(".")[0] for name in block.parameters}) for block in found.blocks]


@pytest.mark.timeout(60)
def test_backcast_and_forecast_are_one_block_and_one_forecast_stays() -> None:
    found = blocks_of(Forecaster(), torch.randn(4, 8))
    assert parts_of(found) == [[f"f.{n}.0", f"f.{n}.2"] for n in range(4)]
    assert all([len(block.branches[mode]) for mode in ("train", "eval")] == [2, 2] for block in found.blocks)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("stacked", [False, True])
def test_residual_and_skip_output_are_one_block(stacked: bool) -> None:
    """The last layer has one output only, which is the one that stays."""
    found = blocks_of(WaveNet(stacked=stacked), torch.randn(2, 2, 16))
    assert parts_of(found) == [[f"gates.{n}", f"residual.{n}", f"skip.{n}"] for n in range(3)]


@pytest.mark.timeout(60)
def test_the_outputs_and_the_nodes_of_a_block_are_named() -> None:
    (block,) = blocks_of(Net(two_streams), torch.randn(4, 6)).blocks
    assert [(branch.add, branch.operands) for branch in block.branches["train"]] == [
        ("sub", ("linear_3",)),
        ("add", ("linear_4",)),
    ]
    computed = [name for name in block.nodes["train"] if "weight" not in name and "bias" not in name]
    assert computed == ["linear_2", "relu", "linear_3", "linear_4"]


@pytest.mark.timeout(60)
def test_an_output_that_is_read_elsewhere_takes_the_block_with_it() -> None:
    assert not blocks_of(Net(third_reader_of_two_outputs), torch.randn(4, 6)).blocks


def one_output_not_zero(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    y, h = net.e(x), net.h(x)
    return x - net.b(h), y + torch.sigmoid(net.d(h))


@pytest.mark.timeout(60)
def test_an_output_that_is_not_zero_leaves_the_other_by_itself() -> None:
    assert parts_of(blocks_of(Net(one_output_not_zero), torch.randn(4, 6))) == [["b"]]


class Conditioned(nn.Module):
    """One embedding that all branches read, as the time in a diffusion model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 6)
        self.up, self.down = (nn.ModuleList(nn.Linear(6, 6) for _ in range(3)) for _ in range(2))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        condition = torch.relu(self.embed(time))
        for up, down in zip(self.up, self.down, strict=True):
            x = x - down(torch.relu(up(x)) * condition)
        return x


@pytest.mark.timeout(60)
def test_what_all_branches_read_does_not_join_them() -> None:
    found = find_blocks(capture(Conditioned(), (torch.randn(4, 6), torch.randn(4, 6))))
    assert parts_of(found) == [[f"down.{n}", f"up.{n}"] for n in range(3)]


def dense(net: Net, x: Tensor) -> Tensor:
    for layer in (net.a, net.b):
        x = torch.cat([x, layer(x[:, :6])], -1)
    return x


@pytest.mark.timeout(60)
def test_a_dense_net_has_no_blocks() -> None:
    assert not blocks_of(Net(dense), torch.randn(4, 6)).blocks


class Shared(nn.Module):
    """Two streams through one layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.down, self.out = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first(x)
        for _ in range(2):
            h = torch.relu(self.up(x))
            x, y = x - self.down(h), y + self.out(h)
        return x, y


@pytest.mark.timeout(60)
def test_blocks_with_several_outputs_that_share_parameters_are_one() -> None:
    found = blocks_of(Shared(), torch.randn(4, 6))
    assert parts_of(found) == [["down", "out", "up"]]
    assert len(found.blocks[0].branches["train"]) == 4
