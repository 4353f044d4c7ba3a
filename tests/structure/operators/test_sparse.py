"""Networks on graphs whose sparse adjacency is an input: their hidden units are cut, nodes are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.structure.subnetworks import exact_plan, share

Tensor = torch.Tensor
Product = Callable[[Tensor, Tensor], Tensor]


class GraphNetwork(nn.Module):
    def __init__(self, product: Product) -> None:
        super().__init__()
        self.product = product
        self.up, self.middle, self.down = nn.Linear(5, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = self.product(adjacency, self.up(x)).relu()
        x = x + self.product(adjacency, x)
        return self.down(self.product(adjacency, self.middle(x)).relu())


PRODUCTS: dict[str, Product] = {
    "sparse.mm": torch.sparse.mm,
    "at": lambda adjacency, x: adjacency @ x,
    "sparse.addmm": lambda adjacency, x: torch.sparse.addmm(x, adjacency, x.sin()),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_a_network_on_a_graph(case: str) -> None:
    edges = torch.tensor([[0, 1, 2, 2, 4, 5], [1, 2, 0, 3, 5, 4]])
    adjacency = torch.sparse_coo_tensor(edges, torch.rand(6), (6, 6)).coalesce()
    assert share(exact_plan(GraphNetwork(PRODUCTS[case]), (torch.randn(6, 5), adjacency))) < 0.6
