"""Backward masking: make the graph compute the full model with parameters that are held as [owned | rest]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import fx

from sdp_compile.ir.program import Program, copy_program
from sdp_compile.ops import narrow
from sdp_compile.passes.base import Pass, PassContext
from sdp_compile.passes.split_convolutions import Channels, seen_by
from sdp_compile.planning.families import Masking
from sdp_compile.planning.holdings import LoweringKind
from sdp_compile.planning.unowned import Unowned

aten = torch.ops.aten


@dataclass(frozen=True)
class SplitParameters(Pass):
    """Each parameter that the worker does not own whole is read as the owned part and the rest of it.

    Linear layers, convolutions, embeddings and layer norms compute with the two parts, so that no more than the owned
    part's gradient is computed and no more is saved than it needs. Other operators read the parts joined; batch and
    group norms lose nothing by it, since the gradient of their input needs the same sums. A parameter of which the
    worker owns nothing becomes a buffer, without a gradient. What the graph computes does not change.
    """

    name: ClassVar[str] = "split_parameters"
    masking: ClassVar[Masking | None] = "backward"
    lowering: ClassVar[LoweringKind | None] = "sliced"

    def run(self, program: Program, context: PassContext) -> Program:
        parts = context.holdings.unowned
        program = copy_program(program)
        for node in list(program.graph.nodes):
            if node.op == "get_attr" and str(node.target) in parts:
                _split(node, parts[str(node.target)])
        program.graph.lint()
        return program


@dataclass(frozen=True)
class Split:
    """A tensor of the graph in two parts; ``channels`` says which of the parameter's indices are owned."""

    owned: fx.Node
    rest: fx.Node
    dim: int
    channels: Channels

    @property
    def runs(self) -> narrow.Runs:
        return self.channels.runs


def _split(node: fx.Node, parts: tuple[Unowned, ...]) -> None:
    if parts[0].dim is None:
        node.target = parts[0].name
        return
    users, full_meta = list(node.users), dict(node.meta)
    node.meta.pop("layouts", None)  # they are the full parameter's
    graph = node.graph
    with graph.inserting_after(node):
        buffers = [graph.get_attr(part.name) for part in parts]
    for user in users:
        owned = node
        for part, buffer in zip(parts, buffers, strict=True):
            assert part.dim is not None
            split = Split(owned, buffer, part.dim, Channels(part.runs))
            if part is not parts[-1]:  # cut along several dimensions: only along the last one it stays apart
                with graph.inserting_before(user):
                    owned = _joined(split, {})
        _use(user, node, split, full_meta)


def _use(user: fx.Node, full: fx.Node, split: Split, meta: Mapping[str, Any]) -> None:
    """Makes ``user``, which reads the full tensor, read its parts."""
    alone = _count(user, full) == 1
    with user.graph.inserting_before(user):
        if alone and user.target in _VIEWS:
            _through(user, split)
            return
        call = _NARROW[user.target](user, full, split) if alone and user.target in _NARROW else None
        if call is None:
            # One for each reader, directly before it: the full tensor lives no longer than it is needed.
            user.replace_input_with(full, _joined(split, meta))
        else:
            user.target, user.args, user.kwargs = *call, {}
            user.meta.pop("rewrites", None)


def _count(user: fx.Node, read: fx.Node) -> int:
    found: list[fx.Node] = []
    fx.node.map_arg((user.args, user.kwargs), lambda arg: found.append(arg) if arg is read else None)
    return len(found)


def _joined(split: Split, meta: Mapping[str, Any]) -> fx.Node:
    node = split.owned.graph.call_function(narrow.join, (split.owned, split.rest, split.dim, split.runs))
    node.meta = {key: value for key, value in meta.items() if key != "rewrites"}
    return node


def _through(view: fx.Node, split: Split) -> None:
    """A transposition or cast of a parameter is one of each of its parts."""
    dim = _VIEWS[view.target](view, split.dim)
    halves = []
    for part in (split.owned, split.rest):
        half = view.graph.call_function(view.target, (part, *view.args[1:]), dict(view.kwargs))  # type: ignore[arg-type]
        half.meta = {key: value for key, value in view.meta.items() if key not in ("rewrites", "layouts")}
        halves.append(half)
    for user in list(view.users):
        _use(user, view, Split(halves[0], halves[1], dim, split.channels), view.meta)
    if not view.users:
        view.graph.erase_node(view)


def _transposed(view: fx.Node, dim: int) -> int:
    ndim = int(view.meta["val"].ndim)
    dims: tuple[Any, ...] = view.args[1:3] or (0, ndim - 1)
    first, second = (int(d) % ndim for d in dims)
    return {first: second, second: first}.get(dim, dim)


def _permuted(view: fx.Node, dim: int) -> int:
    order: Any = view.args[1]
    return [int(d) % view.meta["val"].ndim for d in order].index(dim)


def _same(view: fx.Node, dim: int) -> int:
    return dim


_VIEWS: Mapping[Any, Callable[[fx.Node, int], int]] = {
    aten.t.default: _transposed,
    aten.transpose.int: _transposed,
    aten.permute.default: _permuted,
    aten.to.dtype: _same,
    aten._to_copy.default: _same,
}

Call: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...]]

Rewrite: TypeAlias = Callable[[fx.Node, fx.Node, Split], Call | None]
"""The call that computes an operator on the two parts; None where it has to read them joined."""


def _arguments(node: fx.Node) -> dict[str, Any]:
    """All arguments of an operator by name, defaults included."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False))
    return {argument.name: argument.default_value for argument in schema.arguments} | given | dict(node.kwargs)


def _linear(node: fx.Node, weight: fx.Node, split: Split) -> Call | None:
    arguments = _arguments(node)
    if arguments["weight"] is not weight:
        return None
    args = (arguments["input"], split.owned, split.rest, arguments["bias"], split.dim, split.runs)
    return narrow.linear, args


def _product(node: fx.Node, weight: fx.Node, split: Split) -> Call | None:
    arguments = list(_arguments(node).values())
    bias = arguments.pop(0) if node.target is aten.addmm.default else None
    x, second, *scales = arguments
    plain = all(scale == 1 for scale in scales) and (bias is None or bias.meta["val"].ndim == 1)
    if second is not weight or weight.meta["val"].ndim != 2 or not plain:
        return None
    return narrow.product, (x, split.owned, split.rest, bias, split.dim, split.runs)


def _convolution(node: fx.Node, weight: fx.Node, split: Split) -> Call | None:
    arguments = _arguments(node)
    x, value = arguments["input"], weight.meta["val"]
    found = seen_by(node, arguments, value, split.dim, split.channels) if arguments["weight"] is weight else None
    if found is None or x.meta["val"].ndim != value.ndim:
        return None
    geometry, seen = found
    args = (x, split.owned, split.rest, arguments["bias"], split.dim, split.runs, geometry, arguments["groups"], seen)
    return narrow.convolution, args


def _embedding(node: fx.Node, weight: fx.Node, split: Split) -> Call | None:
    if split.dim != 1:
        return None
    halves = [
        node.graph.call_function(aten.embedding.default, (part, *node.args[1:]), dict(node.kwargs))
        for part in (split.owned, split.rest)
    ]
    return narrow.join, (*halves, -1, split.runs)


def _layer_norm(node: fx.Node, weight: fx.Node, split: Split) -> Call | None:
    arguments = _arguments(node)
    if arguments["weight"] is not weight or len(arguments["normalized_shape"]) != 1:
        return None
    args = (arguments["input"], split.owned, split.rest, arguments["bias"], arguments["eps"], split.runs)
    return narrow.layer_norm, args


_NARROW: Mapping[Any, Rewrite] = {
    aten.linear.default: _linear,
    **dict.fromkeys([aten.mm.default, aten.addmm.default, aten.matmul.default], _product),
    **dict.fromkeys([aten.conv1d.default, aten.conv2d.default, aten.conv3d.default], _convolution),
    **dict.fromkeys([aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding], _convolution),
    **dict.fromkeys(
        [aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input], _convolution
    ),
    aten.embedding.default: _embedding,
    aten.layer_norm.default: _layer_norm,
}
