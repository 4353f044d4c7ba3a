"""Recurrent layers as one operator.

A unit without parameters stays 0 if its state starts at 0: its candidate is tanh(0), and every gate mixes zeros. The
axis of hidden units occurs twice in the recurrent weight, so only ``axes="all"`` cuts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sdp_compile.structure import axes
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
    directions, stride = 1 + bidirectional, 4 if has_biases else 2
    ctx.freeze(*input.dims[:-1], text=f"{ctx.operator} runs along it")
    if len(params) != num_layers * directions * stride:
        ctx.freeze_values(input, *states, *params, text=f"{ctx.operator} projects its state")
        return [ctx.frozen(ctx.sizes_of(tensor)) for tensor in ctx.node.meta["val"]]
    hidden = params[1].dims[1]
    features, zero = input.dims[-1], input.is_zero(-1)
    for layer in range(num_layers):
        for direction in range(directions):
            first = (layer * directions + direction) * stride
            _gates(ctx, features, zero, hidden, params[first : first + stride])
        both = axes.fresh(directions, ctx.reason("it counts directions"))
        features, zero = (*both, *hidden), True
    _start(ctx, states, hidden)
    results = [ctx.sizes_of(tensor)[:-1] for tensor in ctx.node.meta["val"]]
    last = [features, *(hidden for _ in states)]
    return [_ending_in(ctx, sizes, dim) for sizes, dim in zip(results, last, strict=True)]


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
    _gates(ctx, input.dims[-1], input.is_zero(-1), w_hh.dims[1], params)
    _start(ctx, states, w_hh.dims[1])
    results = [Value((*input.dims[:-1], w_hh.dims[1]), (*(False for _ in input.dims[:-1]), True)) for _ in states]
    return results if isinstance(hx, list) else results[0]


def _gates(ctx: Context, features: Dim, zero: bool, hidden: Dim, params: Sequence[Value]) -> None:
    """Relates the parameters of one layer: (gates x hidden, features), (gates x hidden, hidden) and their biases."""
    w_ih, w_hh = params[:2]
    ctx.unify(features, w_ih.dims[1])
    ctx.contract(w_ih.dims[1], zero, w_ih.is_zero(1))
    ctx.unify(w_hh.dims[1], hidden)
    units = axes.size(hidden)
    for value in params:
        sizes = [axes.size(value.dims[0]) // units, units]
        (gates, rows), _ = axes.regroup([value.dims[0]], sizes, ctx.reason())
        ctx.freeze(gates, text=f"{ctx.operator} has a fixed number of gates")
        ctx.unify(rows, hidden)
    if not all(value.is_zero(0) for value in params):
        ctx.freeze(hidden, text=f"{ctx.operator} does not keep a missing unit at 0")


def _start(ctx: Context, states: Sequence[Value], hidden: Dim) -> None:
    for state in states:
        ctx.freeze(*state.dims[:-1])
        ctx.unify(state.dims[-1], hidden)
    if not all(state.is_zero(-1) for state in states):
        ctx.freeze(hidden, text=f"{ctx.operator} starts from a state that is not 0 where a unit is missing")


def _ending_in(ctx: Context, sizes: Sequence[int], dim: Dim) -> Value:
    """Returns a result that can only be cut along its last dimension, and is 0 at missing units there."""
    leading = tuple(axes.fresh(length, ctx.reason()) for length in sizes)
    return Value((*leading, dim), (*(False for _ in leading), True))
