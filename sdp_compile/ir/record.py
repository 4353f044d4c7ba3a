"""Graphs as plain data that can be pickled.

`torch.fx` pickles a graph as its generated code and traces that code again, which loses names and metadata. Operators
cannot be pickled at all.
"""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

_KEPT_META = ("nn_module_stack", "stack_trace", "val", "full_val", "checkpoint", "layouts", "rewrites")


@dataclass(frozen=True)
class _NodeName:
    name: str


@dataclass(frozen=True)
class _Operator:
    """An operator, as in ``aten::add`` and ``Tensor``, or a function with its module and name."""

    name: str
    overload: str | None
    module: str | None = None

    def resolve(self) -> Any:
        if self.module is not None:
            return getattr(importlib.import_module(self.module), self.name)
        namespace, name = self.name.split("::")
        packet = getattr(getattr(torch.ops, namespace), name)
        return getattr(packet, self.overload or "default")


@dataclass(frozen=True)
class _Fake:
    """A tensor of node metadata. Free sizes become those of the example."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def tensor(self) -> torch.Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device=self.device)


def graph_record(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """Returns ``graph`` as a list of picklable tuples, one per node."""
    return [
        (
            node.op,
            node.name,
            _operator(node.target) if callable(node.target) else node.target,
            _encode(node.args),
            _encode(node.kwargs),
            {key: _plain(node.meta[key]) for key in _KEPT_META if key in node.meta},
        )
        for node in graph.nodes
    ]


def graph_from_record(record: list[tuple[Any, ...]]) -> fx.Graph:
    """Returns the graph that `graph_record` described. Tensors in its metadata are fake."""
    graph = fx.Graph()
    fake = FakeTensorMode()
    nodes: dict[str, fx.Node] = {}
    for op, name, target, args, kwargs, meta in record:
        resolved = target.resolve() if isinstance(target, _Operator) else target
        node = graph.create_node(op, resolved, _decode(args, nodes), _decode(kwargs, nodes), name=name)
        if node.name != name:
            node._rename(name)
        with fake:
            node.meta = {key: _unplain(value) for key, value in meta.items()}
        nodes[name] = node
    return graph


def _operator(target: Any) -> _Operator:
    if isinstance(target, torch._ops.OpOverload):
        return _Operator(target._schema.name, target._overloadname)
    module = target.__module__
    # The C functions of operator live in _operator, which is private.
    return _Operator(target.__name__, None, "operator" if module == "_operator" else module)


def _encode(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return _NodeName(value.name)
    if isinstance(value, (tuple, list)):
        # fx wraps lists and tuples in its own immutable classes.
        return [_encode(item) for item in value] if isinstance(value, list) else tuple(map(_encode, value))
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(_encode(value.start), _encode(value.stop), _encode(value.step))
    return value


def _decode(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(value, _NodeName):
        return nodes[value.name]
    if isinstance(value, list):
        return [_decode(item, nodes) for item in value]
    if isinstance(value, tuple):
        return tuple(_decode(item, nodes) for item in value)
    if isinstance(value, dict):
        return {key: _decode(item, nodes) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(_decode(value.start, nodes), _decode(value.stop, nodes), _decode(value.step, nodes))
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, torch._ops.OpOverload):
        return _operator(value)
    operator = getattr(value, "operator", None)  # what the node becomes when it is cut
    if isinstance(operator, torch._ops.OpOverload):
        return dataclasses.replace(value, operator=_operator(operator))
    if isinstance(value, torch.Tensor):
        return _Fake(tuple(_hint(size) for size in value.shape), value.dtype, value.device)
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return None
    if isinstance(value, (tuple, list)):
        return type(value)([_plain(item) for item in value]) if type(value) in (tuple, list) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return f"{value.__module__}.{value.__qualname__}" if isinstance(value, type) else value


def _unplain(value: Any) -> Any:
    if isinstance(value, _Operator):
        return value.resolve()
    operator = getattr(value, "operator", None)
    if isinstance(operator, _Operator):
        return dataclasses.replace(value, operator=operator.resolve())
    if isinstance(value, _Fake):
        return value.tensor()
    if isinstance(value, (tuple, list)):
        return type(value)([_unplain(item) for item in value])
    if isinstance(value, dict):
        return {key: _unplain(item) for key, item in value.items()}
    return value


def _hint(size: int | torch.SymInt) -> int:
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return int(hint) if hint is not None else 1
