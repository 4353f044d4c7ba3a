"""Recurrent layers as one operator.

A unit without parameters stays 0 if its state starts at 0: its candidate is tanh(0), and every gate mixes zeros. The
axis of hidden units occurs twice in the recurrent weight, so only ``axes="all"`` cuts it. An LSTM that projects its
state has two axes, the cells and what they are projected to, of which the recurrent weight holds each once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sdp_compile.ops.recurrent import lstm_with_projection
from sdp_compile.structure import axes, views
from sdp_compile.structure.axes import Dim
from sdp_compile.structure.operators.context import Context, Value
from sdp_compile.structure.operators.table import rule

aten = torch.ops.aten


@rule(aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
def recurrent(
    ctx: Context,
    input: Value,
    hx: Any,
    params: Sequence[Value],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    **_: Any,
) -> list[Value]:
    states = hx if isinstance(hx, list) else [hx]
    directions = 1 + bidirectional
    stride = len(params) // (num_layers * directions)
    projected = stride % 2 == 1
    ctx.freeze(*input.dims[:-1], text=f"{ctx.operator} runs along it")
    hidden = params[1].dims[1]
    cells = params[stride - 1].dims[1] if projected else hidden
    features, zero = input.dims[-1], input.is_zero(-1)
    for start in range(0, len(params), stride):
        if start and start % (directions * stride) == 0:
            both = axes.fresh(directions, ctx.reason("it counts directions"))
            features, zero = (*both, *hidden), True
        layer = params[start : start + stride]
        if projected:
            layer, projection = layer[:-1], layer[-1]
            _project(ctx, cells, hidden, projection)
        _gates(ctx, features, zero, hidden, cells, layer)
    if projected:
        ctx.become(lstm_with_projection)
    both = axes.fresh(directions, ctx.reason("it counts directions"))
    last = [hidden, cells][: len(states)]
    _start(ctx, states, last)
    results = [ctx.sizes_of(tensor)[:-1] for tensor in ctx.node.meta["val"]]
    return [_ending_in(ctx, sizes, dim) for sizes, dim in zip(results, [(*both, *hidden), *last], strict=True)]


@rule(aten.lstm_cell.default, aten.gru_cell.default, aten.rnn_tanh_cell.default, aten.rnn_relu_cell.default)
def cell(
    ctx: Context,
    input: Value,
    hx: Any,
    w_ih: Value,
    w_hh: Value,
    b_ih: Value | None = None,
    b_hh: Value | None = None,
) -> Value | list[Value]:
    states = hx if isinstance(hx, list) else [hx]
    params = [value for value in (w_ih, w_hh, b_ih, b_hh) if value is not None]
    _gates(ctx, input.dims[-1], input.is_zero(-1), w_hh.dims[1], w_hh.dims[1], params)
    _start(ctx, states, [w_hh.dims[1]] * len(states))
    results = [Value((*input.dims[:-1], w_hh.dims[1]), (*(False for _ in input.dims[:-1]), True)) for _ in states]
    return results if isinstance(hx, list) else results[0]


def _gates(ctx: Context, features: Dim, zero: bool, hidden: Dim, cells: Dim, params: Sequence[Value]) -> None:
    """Relates the parameters of one layer: (gates x cells, features), (gates x cells, hidden) and their biases."""
    w_ih, w_hh = params[:2]
    ctx.unify(features, w_ih.dims[1])
    ctx.contract(w_ih.dims[1], zero, w_ih.is_zero(1))
    ctx.unify(w_hh.dims[1], hidden)
    units = axes.size(cells)
    for value in params:
        sizes = [axes.size(value.dims[0]) // units, units]
        (gates, rows), _ = views.regroup([value.dims[0]], sizes, ctx.reason())
        ctx.freeze(gates, text=f"{ctx.operator} has a fixed number of gates")
        ctx.unify(rows, cells)
    _keep_at_zero(ctx, cells, params)


def _project(ctx: Context, cells: Dim, hidden: Dim, projection: Value) -> None:
    """Relates the projection of one layer, (hidden, cells)."""
    ctx.unify(projection.dims[0], hidden)
    ctx.unify(projection.dims[1], cells)
    _keep_at_zero(ctx, hidden, [projection])


def _keep_at_zero(ctx: Context, dim: Dim, params: Sequence[Value]) -> None:
    if not all(value.is_zero(0) for value in params):
        ctx.freeze(dim, text=f"{ctx.operator} does not keep a missing unit at 0")


def _start(ctx: Context, states: Sequence[Value], dims: Sequence[Dim]) -> None:
    for state, dim in zip(states, dims, strict=True):
        ctx.freeze(*state.dims[:-1])
        ctx.unify(state.dims[-1], dim)
        if not state.is_zero(-1):
            ctx.freeze(dim, text=f"{ctx.operator} starts from a state that is not 0 where a unit is missing")


def _ending_in(ctx: Context, sizes: Sequence[int], dim: Dim) -> Value:
    """Returns a result that can only be cut along its last dimension, and is 0 at missing units there."""
    leading = tuple(axes.fresh(length, ctx.reason()) for length in sizes)
    return Value((*leading, dim), (*(False for _ in leading), True))
