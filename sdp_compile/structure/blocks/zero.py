"""What is 0 in a region when its parameters are 0?

An abstract run over what the table of operators says about 0. An ATen operator that declares nothing there makes
something finite.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from sdp_compile.ir.effects import Effects
from sdp_compile.ir.schema import bind, operator_name
from sdp_compile.structure.operators import lookup
from sdp_compile.structure.operators.at_zero import Call, Outcome


def outcomes_without(
    region: Sequence[fx.Node], parameters: Collection[str], effects: Effects
) -> dict[fx.Node, Outcome]:
    """Returns what is known of each node of a region when parameters are 0 and all else outside of it is finite.

    Args:
        region: The nodes, in the order of the graph.
        parameters: The names of the parameters that are 0.
        effects: Which of the nodes overwrite the inputs of others.
    """
    values: dict[fx.Node, Outcome] = {}
    for node in region:
        if node.op == "get_attr":
            values[node] = Outcome.ZERO if node.target in parameters else Outcome.FINITE
        else:
            values[node] = evaluate(node, values, effects.stale.get(node, {}))
    return values


def evaluate(
    node: fx.Node, values: Mapping[fx.Node, Outcome], stale: Mapping[fx.Node, fx.Node] | None = None
) -> Outcome:
    """Returns what is known of a node's value. UNDEFINED is contagious.

    Args:
        node: The node.
        values: What is known of other nodes; those that are not named are finite.
        stale: For each input that has been overwritten since it was made, possibly in part, the node that wrote to it.
    """

    def value_of(argument: Any) -> Outcome:
        if isinstance(argument, fx.Node):
            value = values.get(argument, Outcome.FINITE)
            writer = (stale or {}).get(argument)
            return value if writer is None else _common((value, values.get(writer, Outcome.FINITE)))
        if isinstance(argument, list | tuple):
            return _common([value_of(item) for item in argument])
        is_zero = isinstance(argument, int | float | complex) and argument == 0
        return Outcome.ZERO if is_zero else Outcome.FINITE

    sources = [value_of(source) for source in node.all_input_nodes]
    if Outcome.UNDEFINED in sources:
        return Outcome.UNDEFINED
    if node.target is operator.getitem:
        return _item(node, value_of(node.args[0]))
    at_zero = lookup(node.target).at_zero
    if at_zero is not None:
        return at_zero(Call(bind(node), lambda argument: value_of(argument) is Outcome.ZERO))
    if Outcome.ZERO not in sources:
        return Outcome.FINITE
    if node.target in (operator.add, operator.iadd, operator.sub, operator.isub):
        return _common([value_of(argument) for argument in node.args])
    name = operator_name(node)
    # What operators of other libraries do is unknown, and those of linear algebra divide or factorise.
    known = isinstance(node.target, torch._ops.OpOverload) and "::" not in name and not name.startswith("linalg_")
    return Outcome.FINITE if known else Outcome.UNDEFINED


def _item(node: fx.Node, whole: Outcome) -> Outcome:
    """Of several results, as values and their positions, a declaration is about the first."""
    source, index = node.args
    target = source.target if isinstance(source, fx.Node) else None
    several = isinstance(target, torch._ops.OpOverload) and len(target._schema.returns) > 1
    return Outcome.FINITE if several and index != 0 else whole


def _common(values: Sequence[Outcome]) -> Outcome:
    if Outcome.UNDEFINED in values:
        return Outcome.UNDEFINED
    return Outcome.ZERO if values and all(value is Outcome.ZERO for value in values) else Outcome.FINITE
