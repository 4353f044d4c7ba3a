"""LSTMs that project their state: the cells are cut, also where a worker keeps as many as there are hidden units."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile import NeuronPolicy
from tests.structure.subnetworks import cut, exact_plan, share

Tensor = torch.Tensor
ALL = NeuronPolicy(replicas=3, axes="all")


class Sequence(nn.Module):
    def __init__(self, kind: Any = nn.LSTM, **options: Any) -> None:
        super().__init__()
        self.up = nn.Linear(5, 12)
        self.layer = kind(12, 16, batch_first=True, **options)
        directions = 1 + options.get("bidirectional", False)
        self.down = nn.Linear(directions * (options.get("proj_size") or 16), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.layer(self.up(x))[0])


class States(nn.Module):
    """Reads the last states of a two-layer bidirectional LSTM besides its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 12)
        self.layer = nn.LSTM(12, 16, 2, batch_first=True, bidirectional=True, proj_size=6)
        self.cells = nn.Linear(16, 3)
        self.out = nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 3))

    def forward(self, ids: Tensor) -> Tensor:
        outputs, (hidden, cells) = self.layer(self.embedding(ids))
        return self.out(torch.cat([hidden[-2], hidden[-1], outputs.mean(1)], -1)) + self.cells(cells[-1])


class FromOnes(nn.Module):
    """Cells that start at 1 stay whole; what they are projected to is cut all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.down = nn.LSTM(5, 16, proj_size=6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden, cells = x.new_zeros(1, x.shape[0], 6), x.new_ones(1, x.shape[0], 16)
        return self.down(self.layer(x, (hidden, cells))[0])


# Options of a layer of 16 cells, of which a worker keeps 8.
PROJECTED: dict[str, dict[str, Any]] = {
    "fewer hidden units than cells": {"proj_size": 6},
    "as many": {"proj_size": 8},
    "more": {"proj_size": 12},
    "as many, in two layers and directions": {"proj_size": 8, "num_layers": 2, "bidirectional": True},
    "as many, without biases": {"proj_size": 8, "num_layers": 2, "bias": False},
}


@pytest.mark.parametrize("case", PROJECTED)
def test_cells_of_a_projected_lstm(case: str) -> None:
    plan = exact_plan(Sequence(**PROJECTED[case]), (torch.randn(4, 5, 5),))
    assert share(plan) < 0.55


def test_both_states_of_a_projected_lstm() -> None:
    assert share(exact_plan(States(), (torch.randint(0, 20, (2, 5)),))) < 0.6


def test_all_axes_of_a_projected_lstm() -> None:
    # 12 of 16 cells and 12 of 15 hidden units.
    plan = exact_plan(Sequence(proj_size=15, num_layers=2), (torch.randn(4, 5, 5),), ALL)
    assert {"layer.weight_ih_l0[0].1", "layer.weight_hh_l0[1]"} <= cut(plan)


def test_backward_masking_of_a_projected_lstm() -> None:
    policy = NeuronPolicy(coverage=0.5, masking="backward")
    assert exact_plan(Sequence(proj_size=8), (torch.randn(4, 5, 5),), policy).memory(0).gradients


def test_cells_that_start_at_one() -> None:
    assert cut(exact_plan(FromOnes(), (torch.randn(4, 5, 5),))) == {"layer.weight_hh_l0[1]"}


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_layers_without_a_projection(kind: Any) -> None:
    plan = exact_plan(Sequence(kind, num_layers=2, bidirectional=True), (torch.randn(4, 5, 5),), ALL)
    assert "layer.weight_ih_l0[0].1" in cut(plan) or "layer.weight_ih_l0[0]" in cut(plan)
