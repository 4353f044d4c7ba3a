"""The LSTM that projects its state, on any number of cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

GATES = 4


def lstm_with_projection(
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes what ``aten.lstm.input`` computes with projections, also with as many cells as hidden units.

    That operator takes an equal number to mean that there is no projection. A cell without parameters that starts at 0
    stays 0, so one more changes nothing.

    Args:
        input: The sequence.
        hx: The first hidden state and the first cells.
        params: For each layer and direction the two weights, their biases if there are any, and the projection.
        has_biases: Whether there are biases.
        num_layers: The number of layers.
        dropout: The probability of dropout between layers.
        train: Whether there is any dropout.
        bidirectional: Whether each layer runs in both directions.
        batch_first: Whether the first dimension of the sequence is the batch.
    """
    hidden, cells = hx
    units = cells.shape[-1]
    if hidden.shape[-1] == units:
        cells = F.pad(cells, (0, 1))
        stride = 5 if has_biases else 3
        params = [
            F.pad(value, (0, 1)) if number % stride == stride - 1 else _one_more(value, units)
            for number, value in enumerate(params)
        ]
    options = (has_biases, num_layers, dropout, train, bidirectional, batch_first)
    output, last, last_cells = torch.ops.aten.lstm.input(input, [hidden, cells], params, *options)
    return output, last, last_cells[..., :units]


def _one_more(value: Tensor, units: int) -> Tensor:
    """Returns a weight or bias of all gates with one more unit, at 0, in each of them."""
    gates = value.reshape(GATES, units, -1)
    return F.pad(gates, (0, 0, 0, 1)).reshape(GATES * (units + 1), *value.shape[1:])
