"""What adds up tensors in a graph, and what it adds.

Besides ``x + f`` these are ``x - f``, ``lerp(x, f, 0.3)``, ``addmm(x, h, w)``, ``stack([x, f]).sum(0)`` and the like.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx

from sdp_compile.ir.effects import tensor_value
from sdp_compile.ir.schema import bind
from sdp_compile.structure.operators.table import base_name


@dataclass(frozen=True)
class Addend:
    """One summand: the product of ``factors`` and ``scale``, which is None where it is a tensor."""

    factors: tuple[fx.Node, ...]
    scale: float | None = 1

    @property
    def alone(self) -> fx.Node | None:
        """The one factor, None for a product."""
        return self.factors[0] if len(self.factors) == 1 else None


@dataclass(frozen=True)
class Addition:
    """A sum of tensors.

    ``result`` is the node whose value is the sum, and ``reader`` the one that reads the addends: the same, or the stack
    that is summed. What else ``reader`` reads, such as the weight of ``lerp``, is none of the addends.
    """

    result: fx.Node
    reader: fx.Node
    addends: tuple[Addend, ...]


_Parts: TypeAlias = list[tuple[tuple[Any, ...], Any]]
"""The factors and the scale of each summand, as a call has them."""


def _first_scaled(a: dict[str, Any]) -> _Parts:
    return [((a["self"],), -a["alpha"] if _is_number(a["alpha"]) else None), ((a["other"],), 1)]


def _second_scaled(a: dict[str, Any]) -> _Parts:
    return [((a["self"],), 1), ((a["other"],), a["alpha"])]


def _subtracted(a: dict[str, Any]) -> _Parts:
    return [((a["self"],), 1), ((a["other"],), -a["alpha"] if _is_number(a["alpha"]) else None)]


def _interpolated(a: dict[str, Any]) -> _Parts:
    weight = a["weight"]
    first = 1 - weight if _is_number(weight) else None
    return [((a["self"],), first), ((a["end"],), weight if _is_number(weight) else None)]


def _product(first: str, second: str) -> Callable[[dict[str, Any]], _Parts]:
    return lambda a: [((a["self"],), a["beta"]), ((a[first], a[second]), a["alpha"])]


_CALLS: dict[str, Callable[[dict[str, Any]], _Parts]] = {
    "aten::add": _second_scaled,
    "aten::sub": _subtracted,
    "aten::rsub": _first_scaled,
    "aten::lerp": _interpolated,
    "aten::addcmul": lambda a: [((a["self"],), 1), ((a["tensor1"], a["tensor2"]), a["value"])],
    "aten::addmm": _product("mat1", "mat2"),
    "aten::addmv": _product("mat", "vec"),
    "aten::addr": _product("vec1", "vec2"),
    "aten::addbmm": _product("batch1", "batch2"),
    "aten::baddbmm": _product("batch1", "batch2"),
}

_PYTHON = {operator.add: 1, operator.iadd: 1, operator.sub: -1, operator.isub: -1}
"""Python's operators, which graphs call on tensors too, and the scale of what is on the right."""


def addition_of(node: fx.Node) -> Addition | None:
    """Returns the sum that is the value of a node, None where it is no sum of tensors or one counts 0 times."""
    stacked = _stacked(node)
    reader, parts = (node, _parts(node)) if stacked is None else stacked
    read = {factor for factors, _ in parts for factor in factors if isinstance(factor, fx.Node)}
    for factors, scale in parts:
        if scale == 0 or any(not isinstance(f, fx.Node) or tensor_value(f) is None for f in factors):
            return None
    if len({factors for factors, _ in parts}) < 2 or not read.isdisjoint(_others(reader, parts)):
        return None
    addends = (Addend(factors, float(scale) if _is_number(scale) else None) for factors, scale in parts)
    return Addition(node, reader, tuple(addends))


def addition_read_by(node: fx.Node) -> Addition | None:
    """Returns the sum whose addends a node reads, None where it reads none."""
    if node.target is torch.ops.aten.stack.default:
        additions = [addition_of(user) for user in node.users]
        return next((one for one in additions if one is not None and one.reader is node), None)
    return addition_of(node)


def _parts(node: fx.Node) -> _Parts:
    if node.op != "call_function":
        return []
    if node.target in _PYTHON:
        return [((node.args[0],), 1), ((node.args[1],), _PYTHON[node.target])]
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    parts = _CALLS.get(base_name(node.target._schema.name))
    if parts is None:
        return []
    arguments = bind(node)
    # The scales of a product or of `add` may be symbolic; what they make of the sum is then unknown.
    known = all(_is_number(arguments[name]) for name in ("alpha", "beta", "value") if name in arguments)
    return parts(arguments) if known else []


def _stacked(node: fx.Node) -> tuple[fx.Node, _Parts] | None:
    """Returns the stack that a node sums or averages over its new dimension and that nothing else reads."""
    if node.target not in (torch.ops.aten.sum.dim_IntList, torch.ops.aten.mean.dim):
        return None
    arguments = bind(node)
    stack = arguments["self"]
    if stack.target is not torch.ops.aten.stack.default or len(stack.users) > 1:
        return None
    tensors, dim = bind(stack)["tensors"], bind(stack)["dim"]
    ndim = stack.meta["val"].ndim
    summed = arguments["dim"]
    if not isinstance(summed, list | tuple) or [d % ndim for d in summed] != [dim % ndim]:
        return None
    if arguments["keepdim"] or arguments["dtype"] is not None:
        return None
    scale = 1 if node.target is torch.ops.aten.sum.dim_IntList else 1 / len(tensors)
    return stack, [((tensor,), scale) for tensor in tensors]


def _others(reader: fx.Node, parts: _Parts) -> set[fx.Node]:
    """Returns what a node reads besides the summands; a tensor may be both."""
    remaining = [factor for factors, _ in parts for factor in factors]
    others: set[fx.Node] = set()

    def visit(source: fx.Node) -> None:
        if source in remaining:
            remaining.remove(source)
        else:
            others.add(source)

    fx.map_arg((reader.args, reader.kwargs), visit)
    return others


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
