"""Writes a graph as code: a name and a call for each node."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import fx

from sdp_compile import ops
from sdp_compile.inspector.plain import ranges
from sdp_compile.ir.schema import operator_name

MOST_ITEMS = 12
"""Longest list of numbers that is written out; a rescale pass can hold one factor per neuron."""

_INFIX: Mapping[Any, str] = {
    operator.mul: "*",
    operator.floordiv: "//",
    operator.add: "+",
    operator.sub: "-",
    operator.truediv: "/",
    operator.mod: "%",
    operator.eq: "==",
    operator.ge: ">=",
    operator.gt: ">",
    operator.le: "<=",
    operator.lt: "<",
}
_END = 2**63 - 1
_OMITTED_IF_DEFAULT = frozenset({"pin_memory", "layout", "non_blocking"})


class Naming:
    """The names of a graph's nodes: ``self.FQN`` for state tensors, the node's own name for all others.

    A node that stands for a state tensor (its masked value, or the tensor behind an all-reduce) is written as that
    tensor: ``self.weight = mask_parameter(self.weight)``. So a pass that inserts such nodes does not change the text of
    the nodes that read the tensor.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.stands_for: dict[fx.Node, fx.Node] = {}
        self.names: dict[fx.Node, str] = {}
        for node in graph.nodes:
            state = self.state_of(_original(node))
            if state is not None:
                self.stands_for[node] = state
            self.names[node] = f"self.{(state or node).target}" if state or node.op == "get_attr" else node.name

    def state_of(self, node: fx.Node | None) -> fx.Node | None:
        """Returns the ``get_attr`` node that a node is or stands for, if any."""
        return None if node is None else node if node.op == "get_attr" else self.stands_for.get(node)

    def states(self, node: fx.Node) -> list[fx.Node]:
        """Returns the state tensors that a node reads, each once."""
        return list(dict.fromkeys(state for one in node.all_input_nodes if (state := self.state_of(one)) is not None))

    def call(self, node: fx.Node) -> Any:
        """Returns what a node computes (target, arguments by name), which can be compared between programs."""
        if node.op == "placeholder":
            return "input"
        return (node.target, *plain_arguments(node, self.names))

    def code(self, node: fx.Node) -> str:
        """Returns the node's call as Python code, without the name that it is assigned to."""
        if node.op == "placeholder":
            return "input"
        if node.op == "get_attr":
            return self.names[node]
        arguments = [self._text(argument) for argument in node.args]
        if node.op == "output":
            return f"return {arguments[0]}"
        if node.target is operator.getitem:
            return f"{arguments[0]}[{arguments[1]}]"
        if node.target in _INFIX and len(arguments) == 2:
            return f"{arguments[0]} {_INFIX[node.target]} {arguments[1]}"
        if node.target in ops.MASKS:
            return f"{called(node)}({arguments[0]})"  # the names of its masks say nothing
        named = [f"{key}={self._text(value)}" for key, value in node.kwargs.items() if not _is_default(key, value)]
        return f"{called(node)}({', '.join([*arguments, *named])})"

    def _text(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return self.names[value]
        if isinstance(value, list | tuple):
            opening, closing = "[]" if isinstance(value, list) else "()"
            comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
            return f"{opening}{_items(value, self._text)}{comma}{closing}"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key!r}: {self._text(item)}" for key, item in value.items()) + "}"
        if isinstance(value, slice):
            return ":".join("" if item is None else self._text(item) for item in (value.start, value.stop, value.step))
        if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
            return str(value).removeprefix("torch.")
        if type(value) is int and value == _END:
            return "end"
        return repr(str(value)) if isinstance(value, torch.device) else str(value) if callable(value) else repr(value)


def called(node: fx.Node) -> str:
    """Returns ``linear`` for ``aten.linear.default``, and the function's own name otherwise."""
    name = operator_name(node) or getattr(node.target, "__name__", "") or str(node.target)
    return name.replace("::", ".")


def target_text(node: fx.Node) -> str:
    """Returns the full name of what a node calls: ``aten.linear.default``, ``sdp_compile.ops.rescale``."""
    if not callable(node.target):
        return str(node.target)
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    module = getattr(node.target, "__module__", None) or ""
    return f"{module.removeprefix('_')}.{getattr(node.target, '__qualname__', node.target)}"


def plain_arguments(node: fx.Node, names: Mapping[fx.Node, str]) -> tuple[Any, Any]:
    """Returns positional and keyword arguments with names in place of nodes."""
    result: tuple[Any, Any] = fx.node.map_arg((node.args, node.kwargs), lambda one: _Name(names[one]))
    return result


class _Name(str):
    """A node's name. It never equals a string argument."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Name) and str.__eq__(self, other)

    def __hash__(self) -> int:
        return str.__hash__(self)


def _original(node: fx.Node) -> fx.Node | None:
    """The tensor that an inserted node passes on unchanged or masked."""
    if node.target in ops.MASKS:
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        marks, position = node.args
        if marks.target is ops.all_reduce_mean and isinstance(position, int):  # type: ignore[union-attr]
            original: fx.Node = marks.args[position]  # type: ignore[union-attr,assignment]
            return original
    return None


def _items(values: Collection[Any], text: Callable[[Any], str]) -> str:
    known = list(values)
    if len(known) <= MOST_ITEMS or any(isinstance(item, fx.Node) for item in known):
        return ", ".join(map(text, known))
    if all(isinstance(item, int) for item in known) and known == sorted(known):
        return f"{ranges(known)}: {len(known)}"
    return f"{', '.join(map(text, known[:3]))}, ... {len(known)} in all"


def _is_default(key: str, value: Any) -> bool:
    return value is None or (key in _OMITTED_IF_DEFAULT and value in (False, torch.strided))
