"""The rule registry: one rule per ATen operator says which dimensions are the same axis.

A rule is a function ``(ctx, **arguments) -> Value`` (a list of them for an operator with several results) decorated
with `rule`; its arguments are those of the operator's schema, tensors as `Value`, symbolic sizes as None. An operator
without a rule freezes every axis that touches it: the compiler is never wrong, at worst it cuts less. A user adds a
rule for an operator of their own with the same decorator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import fx

from sdp_compile.structure import axes
from sdp_compile.structure.axes import Dim, Reason


@dataclass
class Storage:
    """Memory that several values view; ``nonzero`` once an in-place operator wrote values there that may not be 0."""

    nonzero: bool = False


@dataclass(frozen=True)
class Value:
    """A tensor under analysis: its dimensions, and per dimension whether it is 0 at every unit that a worker lacks.

    "0" is meant in the oracle's terms: the original model run with the parameters ``mask * theta``.
    """

    dims: tuple[Dim, ...]
    zero: tuple[bool, ...]
    storage: Storage = field(default_factory=Storage, compare=False)

    @property
    def ndim(self) -> int:
        return len(self.dims)

    def is_zero(self, dim: int) -> bool:
        return self.zero[dim] and not self.storage.nonzero


RuleFunction: TypeAlias = Callable[..., Any]


@dataclass(frozen=True)
class Resize:
    """An integer argument of a node (element ``index`` of it, if it is a list) that counts the indices of ``dims``.

    With several dims it counts the sum of their sizes. Lowering replaces it by what a worker keeps.
    """

    argument: str
    index: int | None
    dims: tuple[Dim, ...]


@dataclass
class Rewrites:
    """What must change at a node when the axes at it are cut: sizes, pinned arguments, another operator."""

    resizes: list[Resize] = field(default_factory=list)
    pins: dict[str, Any] = field(default_factory=dict)
    operator: Any = None


_RULES: dict[Any, RuleFunction] = {}


def rule(*operators: Any) -> Callable[[RuleFunction], RuleFunction]:
    """Register the decorated function as the rule of ``operators``.

    An operator is an overload (``aten.add.Tensor``), a packet that stands for its overloads on tensors (``aten.add``),
    or the name ``"namespace::operator"`` of one that a library registers when it is imported.
    """

    def register(function: RuleFunction) -> RuleFunction:
        for operator in operators:
            for overload in _overloads(operator):
                _RULES[overload] = function
        return function

    return register


def _overloads(operator: Any) -> list[Any]:
    if not isinstance(operator, torch._ops.OpOverloadPacket):
        return [operator]
    overloads = [getattr(operator, name) for name in operator.overloads()]
    return [one for one in overloads if not any(argument.is_out for argument in one._schema.arguments)]


def find_rule(operator: Any) -> RuleFunction | None:
    """The rule of an operator, or None."""
    if operator not in _RULES and isinstance(operator, torch._ops.OpOverload):
        return _RULES.get(operator._schema.name)
    return _RULES.get(operator)


class Context:
    """What a rule may ask and do at one node."""

    def __init__(self, node: fx.Node, sizes: Callable[[Any], tuple[int, ...]]) -> None:
        self.node = node
        self.rewrites = Rewrites()
        self._sizes = sizes
        self._subject: str | None = None

    def reason(self, text: str = "") -> Reason:
        return Reason(text or f"{self.operator} needs all of it", self.node)

    @property
    def operator(self) -> str:
        return str(self.node.target).removeprefix("aten.").rsplit(".", 1)[0]

    def out_sizes(self) -> tuple[int, ...]:
        """The full sizes of the node's (first) result, symbols given distinct values."""
        value = self.node.meta["val"]
        return self._sizes(value[0] if isinstance(value, (list, tuple)) else value)

    def sizes_of(self, tensor: Any) -> tuple[int, ...]:
        return self._sizes(tensor)

    def unify(self, a: Dim, b: Dim) -> None:
        axes.unify(a, b, self.reason(f"{self.operator} relates it to a dimension that is composed otherwise"))

    def freeze(self, *dims: Dim, text: str = "") -> None:
        for dim in dims:
            axes.freeze(dim, self.reason(text))

    def freeze_values(self, *values: Value | None, text: str = "") -> None:
        for value in values:
            if value is not None:
                self.freeze(*value.dims, text=text)

    def frozen(self, sizes: Sequence[int] | None = None) -> Value:
        """A result of which nothing can be cut."""
        sizes = self.out_sizes() if sizes is None else sizes
        return Value(tuple(axes.fresh(s, self.reason()) for s in sizes), (False,) * len(sizes))

    def resize(self, argument: str, index: int | None, *dims: Dim) -> None:
        """The node's integer ``argument`` counts ``dims``; see `Resize`."""
        self.rewrites.resizes.append(Resize(argument, index, dims))

    def pin(self, argument: str, value: Any) -> None:
        """Fix an argument whose default is computed from the size of a dimension that may be cut."""
        self.rewrites.pins[argument] = value

    def become(self, operator: Any) -> None:
        """When cut, this node must call another operator, with the arguments that resizes and pins give it."""
        self.rewrites.operator = operator

    def contract(self, dim: Dim, *zero: bool) -> None:
        """A product is summed over ``dim``: units that a worker lacks must contribute exactly 0."""
        if not any(zero):
            self.freeze(dim, text=f"{self.operator} sums over it, and no operand is 0 where a unit is missing")

    def within(self, value: Value, dims: Iterable[int], sizes: Sequence[int] | None = None, zero: bool = True) -> Value:
        """The result of an operator that mixes the indices of ``dims`` and treats those of all others alike.

        ``sizes`` are the result's, by default the node's; ``zero``: the operator makes zeros of zeros.
        """
        sizes = self.out_sizes() if sizes is None else sizes
        mixed = {dim_index(d, value.ndim) for d in dims}
        self.freeze(*(value.dims[d] for d in mixed))
        new = {d: axes.fresh(sizes[d], self.reason()) for d in mixed}
        return Value(
            tuple(new.get(d, value.dims[d]) for d in range(value.ndim)),
            tuple(zero and d not in mixed and value.is_zero(d) for d in range(value.ndim)),
        )

    def writes(self, target: Value, result_zero: Sequence[bool]) -> Value:
        """The value of ``target`` after an in-place operator."""
        for dim, before, after in zip(target.dims, target.zero, result_zero, strict=True):
            if before and not after and any(root.frozen is None for root in axes.expand(dim)):
                target.storage.nonzero = True
        return Value(target.dims, tuple(result_zero), target.storage)


def dim_index(dim: int, ndim: int) -> int:
    return dim + ndim if dim < 0 else dim


def dim_indices(dims: int | Sequence[int] | None, ndim: int) -> list[int]:
    """Normalised dimension numbers; None or empty means all of them."""
    if dims is None or (not isinstance(dims, int) and len(dims) == 0):
        return list(range(ndim))
    return [dim_index(d, ndim) for d in ([dims] if isinstance(dims, int) else dims)]


def bind(node: fx.Node, values: Callable[[Any], Any]) -> dict[str, Any]:
    """The node's arguments by the names of the operator's schema, defaults filled in."""
    bound: dict[str, Any] = {}
    for position, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if position < len(node.args):
            bound[argument.name] = values(node.args[position])
        elif argument.name in node.kwargs:
            bound[argument.name] = values(node.kwargs[argument.name])
        else:
            bound[argument.name] = argument.default_value if argument.has_default_value() else None
    return bound


def mutated_argument(operator: Any) -> str | None:
    """The name of the argument that an in-place operator writes to, or None."""
    if not isinstance(operator, torch._ops.OpOverload):
        return None
    for argument in operator._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            return argument.name
    return None


from sdp_compile.structure.operators import (  # noqa: E402  (rules register themselves on import)
    along,
    contraction,
    convolution,
    elementwise,
    factory,
    indexing,
    joining,
    matrix,
    normalisation,
    pooling,
    recurrent,
    reduction,
    scattering,
    shape,
    spectral,
    splitting,
)

__all__ = ["Context", "Value", "find_rule", "rule"]
