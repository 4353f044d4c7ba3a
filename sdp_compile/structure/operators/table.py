"""The table of operators: for each what the analysis and the passes know about it.

The file of each kind of operator declares all facts about its operators side by side, with `rule` or `declare`. An
operator without a rule freezes every axis that touches it: the compiler is never wrong, at worst it cuts less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import fx

from sdp_compile.ir.schema import functional_name, parameters
from sdp_compile.structure.operators.at_zero import AtZero
from sdp_compile.structure.operators.parts import NarrowCall, Split

Rule: TypeAlias = Callable[..., Any]
"""Says which dimensions are the same axis: ``(context, **arguments)`` to the result's `Value`, or a list of them.

The arguments are those of the operator's schema by name; tensors come as `Value`, symbolic sizes as None.
"""

_RuleT = TypeVar("_RuleT", bound=Rule)


class Contraction(NamedTuple):
    """Two factors of a product that is summed over dimension ``dim`` of ``activation``."""

    activation: fx.Node
    weight: fx.Node
    dim: int


class Work(NamedTuple):
    """FLOPs of a call (two for each multiply-add), and the nodes whose axes they scale with."""

    flops: float
    scales_with: tuple[fx.Node, ...]


Sizes: TypeAlias = Callable[[fx.Node], tuple[int, ...]]
"""Returns the sizes of a node's tensor in the example."""


@dataclass(frozen=True)
class Operator:
    """What is known about one operator; None where nothing is.

    ``rule``: which dimensions are the same axis, and which sizes among the arguments are cut with them.
    ``at_zero``: what it gives where arguments are 0; in-place variants and aliases inherit it.
    ``flops``: the work of a call.
    ``contractions``: the pairs of operands that a call multiplies and sums; either may be a parameter.
    ``narrow``: the call that computes with a parameter in two parts, or None where a call must read them joined.
    ``view``: for operators that only move, permute or cast a parameter: where they put one of its dimensions.
    """

    rule: Rule | None = None
    at_zero: AtZero | None = None
    flops: Callable[[fx.Node, Sizes], list[Work]] | None = None
    contractions: Callable[[fx.Node], Iterable[Contraction]] | None = None
    narrow: Callable[[fx.Node, fx.Node, Split], NarrowCall | None] | None = None
    view: Callable[[fx.Node, int], int] | None = None


ALIASES = {
    **{f"arc{name}": f"a{name}" for name in ("sin", "cos", "tan", "tan2", "sinh", "cosh", "tanh")},
    **{f"special_{name}": name for name in ("digamma", "erf", "erfinv", "expm1", "log1p", "logit", "round", "xlogy")},
    "absolute": "abs",
    "clip": "clamp",
    "divide": "div",
    "fix": "trunc",
    "multiply": "mul",
    "negative": "neg",
    "special_gammainc": "igamma",
    "special_gammaincc": "igammac",
    "special_gammaln": "lgamma",
    "special_multigammaln": "mvlgamma",
    "special_polygamma": "polygamma",
    "special_psi": "digamma",
    "subtract": "sub",
    "true_divide": "div",
}
"""Second names of elementwise operators."""

_UNKNOWN = Operator()
_DECLARED: dict[Any, Operator] = {}
"""By name (``aten::linear``) what holds for all overloads of an operator; by overload the rule of that one alone."""

_FOUND: dict[Any, Operator] = {}
_FALLBACKS: list[tuple[Callable[[Any], bool], Rule]] = []


def rule(*operators: Any, **facts: Any) -> Callable[[_RuleT], _RuleT]:
    """Registers the decorated function as the rule of operators, and declares other facts about them.

    Args:
        operators: Overloads (``aten.add.Tensor``); packets, which stand for their overloads (``aten.add``); or names
            ``"namespace::operator"`` of operators that a library registers when it is imported.
        facts: Other fields of `Operator`; they hold for all overloads of these operators.

    Returns:
        A decorator that registers a function and returns it.
    """

    def register(function: _RuleT) -> _RuleT:
        for operator in operators:
            key = operator if isinstance(operator, torch._ops.OpOverload) else _name(operator)
            _DECLARED[key] = replace(_DECLARED.get(key, _UNKNOWN), rule=function)
        declare(*operators, **facts)
        return function

    return register


def declare(*operators: Any, **facts: Any) -> None:
    """Declares facts about operators, as `rule` does; a name without a namespace is one of ATen's."""
    for name in dict.fromkeys(map(_name, operators)):
        known = _DECLARED.get(name, _UNKNOWN)
        for fact, value in facts.items():
            if getattr(known, fact) not in (None, value):
                raise ValueError(f"The table of operators already says something else about {fact} of {name}.")
        _DECLARED[name] = replace(known, **facts)
    _FOUND.clear()


def fallback_rule(applies: Callable[[Any], bool]) -> Callable[[_RuleT], _RuleT]:
    """Registers the decorated function as the rule of all overloads without one for which ``applies`` holds."""

    def register(function: _RuleT) -> _RuleT:
        _FALLBACKS.append((applies, function))
        _FOUND.clear()
        return function

    return register


def lookup(target: Any) -> Operator:
    """Returns what is known about the target of a node."""
    found = _FOUND.get(target)
    if found is None:
        found = _FOUND[target] = _resolve(target)
    return found


def declared_names() -> list[str]:
    """Returns the names under which facts about all overloads of an operator are declared."""
    return sorted(key for key in _DECLARED if isinstance(key, str))


def base_name(name: str) -> str:
    """Returns the name of an operator without a second name or the underscore of an in-place variant."""
    namespace, _, name = name.rpartition("::")
    name = functional_name(name)
    return f"{namespace or 'aten'}::{ALIASES.get(name, name)}"


def _resolve(target: Any) -> Operator:
    if not isinstance(target, torch._ops.OpOverload):
        return _UNKNOWN
    name = target._schema.name
    found = _DECLARED.get(name, _UNKNOWN)
    own = _DECLARED.get(target, _UNKNOWN).rule
    shared = found.rule if not any(parameter.is_out for parameter in parameters(target)) else None
    fallback = next((rule for applies, rule in _FALLBACKS if applies(target)), None)
    base = _DECLARED.get(base_name(name), _UNKNOWN)
    return replace(found, rule=own or shared or fallback, at_zero=found.at_zero or base.at_zero)


def _name(operator: Any) -> str:
    if isinstance(operator, torch._ops.OpOverload):
        return operator._schema.name
    if isinstance(operator, torch._ops.OpOverloadPacket):
        return operator._qualified_op_name
    return operator if "::" in operator else f"aten::{operator}"
