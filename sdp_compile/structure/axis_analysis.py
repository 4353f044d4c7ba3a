"""Applies the rules to captured programs and reads off which parameter dimensions are cut together."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import fx

from sdp_compile.errors import CaptureError
from sdp_compile.ir.program import Capture, StateTensor
from sdp_compile.ir.schema import bind, get_argument, written_argument
from sdp_compile.ir.sizes import Sizes
from sdp_compile.ir.source import module_path, source_line
from sdp_compile.ops.of_full import mean_of_full
from sdp_compile.structure import axes
from sdp_compile.structure.axes import Axis, Dim, Reason
from sdp_compile.structure.families import Frozen
from sdp_compile.structure.layout import Layout, Leaf, Product, Sum
from sdp_compile.structure.operators import Context, Value, lookup
from sdp_compile.structure.operators.context import Rewrites
from sdp_compile.structure.operators.convolution import KERNEL
from sdp_compile.structure.streams import stream_axes


@dataclass(frozen=True)
class NodeRewrites:
    """What lowering must change at one node: `Rewrites` with resolved dimensions."""

    resizes: tuple[tuple[str, int | None, tuple[Layout, ...]], ...]
    widens: tuple[tuple[str, int, Layout], ...]
    narrows: tuple[tuple[str, int, Layout], ...]
    pins: Mapping[str, Any]
    operator: Any


class AxisAnalysis:
    """The axes of all tensors of a capture. All programs share the axes of parameters and buffers.

    Args:
        capture: The captured model.
        residual_adds: For each program the names of the residual adds.
    """

    def __init__(self, capture: Capture, residual_adds: Mapping[str, frozenset[str]] | None = None) -> None:
        self.capture = capture
        self.sizes = Sizes()
        self.state = {name: _state_value(tensor) for name, tensor in capture.state.items()}
        self.values: dict[str, dict[fx.Node, Any]] = {}
        self._rewrites: dict[fx.Node, Rewrites] = {}
        for key, program in capture.programs.items():
            self.values[key] = self._walk(program.graph)
        streams = {
            axis
            for key, names in (residual_adds or {}).items()
            for axis in stream_axes(capture.programs[key].graph, names, self._leaves_in(key))
        }
        self._keep_streams_whole(streams)
        self.names = _name_axes(self.state, capture.state)
        self.residual = frozenset(self.names[axis] for axis in streams if axis in self.names)
        self._resolved: dict[Axis, Layout] = {}

    def _walk(self, graph: fx.Graph) -> dict[fx.Node, Any]:
        values: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            if node.op == "get_attr":
                values[node] = self.state.get(str(node.target))
            elif node.op == "placeholder":
                values[node] = self._whole(node, Reason("it is an input of the model", node))
            elif node.op == "call_function":
                values[node] = self._call(node, values)
            elif node.op == "output":
                reason = Reason("it is an output of the model", node)
                for value in _tensors([values[a] for a in node.all_input_nodes]):
                    for dim in value.dims:
                        axes.freeze(dim, reason)
        return values

    def _leaves_in(self, key: str) -> Callable[[fx.Node], Collection[Axis]]:
        """Returns a function that gives the axes of a node's value in one graph."""

        @cache
        def leaves(node: fx.Node) -> frozenset[Axis]:
            tensors = _tensors([self.values[key].get(node)])
            return frozenset(leaf for value in tensors for dim in value.dims for leaf in _leaves(dim))

        return leaves

    def _keep_streams_whole(self, streams: Collection[Axis]) -> None:
        """Freezes residual streams that an operator needs whole, as the mean of RMSNorm does.

        Lowering could divide by the full length, or put zeros where units are missing, as it does elsewhere. But then
        every projection would also be cut along the stream, and ``axes="all"`` would need more replicas to own each
        element of it.
        """
        for node, rewrites in self._rewrites.items():
            widened = [widen.whole for widen in rewrites.widens]
            means = [dim for resize in rewrites.resizes for dim in resize.dims]
            for dim in widened + (means if rewrites.operator is mean_of_full else []):
                if not set(streams).isdisjoint(_leaves(dim)):
                    what = "a mean over the residual stream" if rewrites.operator is mean_of_full else node.name
                    axes.freeze(dim, Reason(f"{what} needs all of it", node))

    def _call(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        if getattr(node.target, "__name__", "") == "getitem":
            source, position = cast(tuple[fx.Node, int], node.args)
            container = values[source]
            return container[position] if isinstance(container, list) else None
        inputs = list(_tensors([values[a] for a in node.all_input_nodes]))
        self._refuse_writes_to_parameters(node, values)
        rule = lookup(node.target).rule
        if rule is None:
            return self._opaque(node, inputs)
        context = Context(node, self.sizes.distinct)
        result = rule(context, **fx.map_arg(bind(node), lambda n: values[n]))
        self._rewrites[node] = context.rewrites
        return result

    def _refuse_writes_to_parameters(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> None:
        """Raises CaptureError if a forward changes a parameter, as RWKV does in eval mode: gradients would be wrong."""
        written = written_argument(node.target)
        if written is None:
            return
        argument = get_argument(node, written)
        target = values.get(argument) if isinstance(argument, fx.Node) else None
        for name, value in self.state.items():
            shares = isinstance(target, Value) and target.storage is value.storage
            if shares and self.capture.state[name].kind == "parameter":
                raise CaptureError(
                    f"The model's forward changes its parameter {name!r} in place, at {source_line(node)} "
                    f"(module {module_path(node) or 'the model itself'}). Owners would no longer agree on its value: "
                    "change parameters outside of forward."
                )

    def _opaque(self, node: fx.Node, inputs: list[Value]) -> Any:
        """Freezes everything that touches an operator without a rule."""
        if not isinstance(node.meta.get("val"), (torch.Tensor, list, tuple)):
            return None  # arithmetic on sizes; these stay the full model's
        operator = str(node.target).removeprefix("aten.")
        reason = Reason(f"{operator} has no rule", node)
        for value in inputs:
            value.storage.nonzero = value.storage.nonzero or written_argument(node.target) is not None
            for dim in value.dims:
                axes.freeze(dim, reason)
        return self._whole(node, reason)

    def _whole(self, node: fx.Node, reason: Reason) -> Any:
        def whole(tensor: Any) -> Any:
            if isinstance(tensor, (list, tuple)):
                return [whole(item) for item in tensor]
            if isinstance(tensor, float):
                return math.nan  # a number that may change: rules take it for neither 0 nor anything else
            if not isinstance(tensor, torch.Tensor):
                return None
            lengths = self.sizes.distinct(tensor)
            return Value(tuple(axes.fresh(n, reason) for n in lengths), (False,) * len(lengths))

        return whole(node.meta.get("val"))

    def layout(self, dim: Dim) -> Layout:
        """Returns a dimension as a tree over the named axes."""
        factors = tuple(self._resolve(axis) for axis in axes.expand(dim))
        if not factors:
            return Leaf(1)
        return factors[0] if len(factors) == 1 else Product(factors)

    def _resolve(self, root: Axis) -> Layout:
        if root not in self._resolved:
            if root.parts is not None and root.frozen is None:
                self._resolved[root] = Sum(tuple(self.layout(part) for part in root.parts))
            else:
                self._resolved[root] = Leaf(int(root.size), self.names.get(root))
        return self._resolved[root]

    def annotate(self) -> None:
        """Writes the layouts and rewrites of each node to its ``meta``, where passes read them."""
        for values in self.values.values():
            for node, value in values.items():
                node.meta["layouts"] = self._layouts(value)
                if node in self._rewrites:
                    rewrites = self._rewrites[node]
                    node.meta["rewrites"] = NodeRewrites(
                        tuple((r.argument, r.index, tuple(map(self.layout, r.dims))) for r in rewrites.resizes),
                        tuple((w.argument, w.dim, self.layout(w.whole)) for w in rewrites.widens),
                        tuple((n.argument, n.dim, self.layout(n.part)) for n in rewrites.narrows),
                        rewrites.pins,
                        rewrites.operator,
                    )

    def _layouts(self, value: Any) -> Any:
        if isinstance(value, Value):
            return tuple(self.layout(dim) for dim in value.dims)
        return [self._layouts(item) for item in value] if isinstance(value, list) else ()

    def frozen(self) -> tuple[Frozen, ...]:
        """Returns every parameter dimension that stays whole, and why, without the positions of kernels."""
        found = []
        for name, value in self.state.items():
            if self.capture.state[name].kind != "parameter":
                continue
            for number, dim in enumerate(value.dims):
                leaf = next((leaf for leaf in _leaves(dim) if leaf.frozen is not None), None)
                if leaf is not None and leaf.frozen is not None and leaf.frozen.text != KERNEL:
                    found.append(_frozen(name, number, axes.size(dim), leaf.frozen))
        return tuple(found)


def _frozen(name: str, number: int, length: int, reason: Reason) -> Frozen:
    node = reason.node
    operator = "" if node is None else str(node.target).removeprefix("aten.")
    return Frozen(name, number, length, reason.text, operator, source_line(node), module_path(node))


def _state_value(tensor: StateTensor) -> Value:
    empty = Reason("the tensor has no elements") if tensor.numel == 0 else None
    dims = tuple(axes.fresh(length, empty) for length in tensor.shape)
    return Value(dims, (tensor.kind == "parameter",) * len(dims))


def _tensors(values: Any) -> Iterator[Value]:
    if isinstance(values, Value):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


def _leaves(dim: Dim) -> Iterator[Axis]:
    for root in axes.expand(dim):
        if root.parts is None or root.frozen is not None:
            yield root
        else:
            for part in root.parts:
                yield from _leaves(part)


def _name_axes(values: Mapping[str, Value], state: Mapping[str, StateTensor]) -> dict[Axis, str]:
    """Names each axis that a policy may cut after the first parameter dimension that holds it."""
    names: dict[Axis, str] = {}
    for name, value in values.items():
        if state[name].kind != "parameter":
            continue
        for number, dim in enumerate(value.dims):
            leaves = list(dict.fromkeys(_leaves(dim)))
            for position, leaf in enumerate(leaves):
                if leaf.frozen is None and leaf not in names:
                    suffix = f".{position}" if len(leaves) > 1 else ""
                    names[leaf] = f"{name}[{number}]{suffix}"
    return names
