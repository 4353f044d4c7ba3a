"""ATen calls by their schemas: arguments by name, which of them a call writes, and what schemas leave out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import fx

_SILENT_STATISTICS = {"batch_norm": "training", "instance_norm": "use_input_stats"}
"""Normalisations that update their running statistics while this flag is set, which their schemas do not say."""

_SILENT_ALIASES = frozenset(
    "dropout feature_dropout alpha_dropout feature_alpha_dropout type_as sum_to_size atleast_1d atleast_2d "
    "atleast_3d".split()
)
"""Operators that may return their input itself, which their schemas do not say."""


@dataclass(frozen=True)
class Parameter:
    """One argument in the schema of an operator; ``default`` is None where the schema has none."""

    name: str
    default: Any
    is_aliased: bool
    is_written: bool
    is_out: bool


@cache
def parameters(target: Any) -> tuple[Parameter, ...]:
    """Returns the arguments in the schema of an operator, and nothing for a function that is not an ATen operator."""
    if not isinstance(target, torch._ops.OpOverload):
        return ()
    return tuple(
        Parameter(
            argument.name,
            argument.default_value if argument.has_default_value() else None,
            argument.alias_info is not None,
            argument.alias_info is not None and argument.alias_info.is_write,
            argument.is_out,
        )
        for argument in target._schema.arguments
    )


def operator_name(node: fx.Node) -> str:
    """Returns ``relu`` for ``aten.relu.default``; operators of other libraries keep their namespace."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return ""
    return node.target._schema.name.removeprefix("aten::")


def functional_name(name: str) -> str:
    """Returns the name of an operator without the underscore of its in-place variant."""
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def functional_variant(target: Any) -> torch._ops.OpOverload | None:
    """Returns ``aten.relu.default`` for ``aten.relu_.default``, None where ATen has no such operator."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    name = target._schema.name.removeprefix("aten::")
    packet = getattr(torch.ops.aten, functional_name(name), None) if functional_name(name) != name else None
    return getattr(packet, target._overloadname, None)


def given(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[Parameter, Any]]:
    """Yields each argument of a call with its value, leaving out those that take their default."""
    for position, parameter in enumerate(parameters(target)):
        if position < len(args):
            yield parameter, args[position]
        elif parameter.name in kwargs:
            yield parameter, kwargs[parameter.name]


def bind(node: fx.Node) -> dict[str, Any]:
    """Returns all arguments of an ATen call by name, defaults included."""
    bound = {parameter.name: parameter.default for parameter in parameters(node.target)}
    for parameter, value in given(node.target, node.args, node.kwargs):
        bound[parameter.name] = value
    return bound


def get_argument(node: fx.Node, name: str) -> Any:
    """Returns one argument of an ATen call, or its default."""
    return bind(node)[name]


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Changes one argument of an ATen call."""
    position = [parameter.name for parameter in parameters(node.target)].index(name)
    if position < len(node.args):
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)


def tensor_arguments(node: fx.Node) -> list[fx.Node]:
    """Returns the tensors among the arguments of an ATen call, those in lists left out."""
    values = [value for _, value in given(node.target, node.args, node.kwargs)]
    return [value for value in values if isinstance(value, fx.Node) and isinstance(value.meta.get("val"), torch.Tensor)]


def written_argument(target: Any) -> str | None:
    """Returns the name of the argument that an in-place operator overwrites, None for other operators."""
    return next((parameter.name for parameter in parameters(target) if parameter.is_written), None)


def written_statistics(node: fx.Node) -> list[Any]:
    """Returns the running statistics that a normalisation updates, which its schema does not say."""
    flag = _SILENT_STATISTICS.get(operator_name(node))
    if flag is None:
        return []
    arguments = bind(node)
    statistics = [arguments["running_mean"], arguments["running_var"]]
    return [value for value in statistics if value is not None] if arguments[flag] else []


def written_values(node: fx.Node) -> list[Any]:
    """Returns the values of all arguments that an ATen call overwrites."""
    written = [value for parameter, value in given(node.target, node.args, node.kwargs) if parameter.is_written]
    return [*written, *written_statistics(node)]


def aliased_values(node: fx.Node) -> list[Any]:
    """Returns the values of all arguments whose storage the result of an ATen call may share."""
    if operator_name(node) in _SILENT_ALIASES:
        return [node.args[0]]
    if not _returns_alias(node.target):
        return []
    return [value for parameter, value in given(node.target, node.args, node.kwargs) if parameter.is_aliased]


@cache
def _returns_alias(target: Any) -> bool:
    return any(result.alias_info is not None for result in target._schema.returns)
