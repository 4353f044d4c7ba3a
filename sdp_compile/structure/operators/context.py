"""What a rule sees and says: the dimensions of tensors, and the node under analysis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from sdp_compile.ir.schema import operator_name
from sdp_compile.structure import axes
from sdp_compile.structure.axes import Dim, Reason


@dataclass
class Storage:
    """Memory that several values view; ``nonzero`` once an in-place operator wrote values there that may not be 0."""

    nonzero: bool = False


@dataclass(frozen=True)
class Value:
    """A tensor under analysis: its dimensions, and for each whether the tensor is 0 at the units that a worker lacks.

    "0" is meant in the oracle's terms: the original model run with the parameters ``mask * theta``.
    """

    dims: tuple[Dim, ...]
    zero: tuple[bool, ...]
    storage: Storage = field(default_factory=Storage, compare=False)

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.dims)

    def is_zero(self, dim: int) -> bool:
        """Whether the tensor is 0 at the missing units of a dimension."""
        return self.zero[dim] and not self.storage.nonzero


@dataclass(frozen=True)
class Resize:
    """An integer argument of a node (element ``index`` of it, if it is a list) that counts the indices of ``dims``.

    With several dims it counts the sum of their sizes. Lowering replaces it by what a worker keeps.
    """

    argument: str
    index: int | None
    dims: tuple[Dim, ...]


@dataclass(frozen=True)
class Widen:
    """An operand of a node that must be whole along ``dim``: lowering puts zeros where a worker lacks units of it."""

    argument: str
    dim: int
    whole: Dim


@dataclass(frozen=True)
class Narrow:
    """An operand that every worker holds whole along ``dim``, of which a node needs what a worker keeps of ``part``."""

    argument: str
    dim: int
    part: Dim


@dataclass
class Rewrites:
    """What must change at a node when the axes at it are cut: sizes, operands, pinned arguments, another operator."""

    resizes: list[Resize] = field(default_factory=list)
    widens: list[Widen] = field(default_factory=list)
    narrows: list[Narrow] = field(default_factory=list)
    pins: dict[str, Any] = field(default_factory=dict)
    operator: Any = None


class Context:
    """What a rule may ask and do at one node.

    Args:
        node: The call under analysis.
        sizes: Gives the full sizes of a fake tensor, symbols replaced by distinct numbers.
    """

    def __init__(self, node: fx.Node, sizes: Callable[[Any], tuple[int, ...]]) -> None:
        self.node = node
        self.rewrites = Rewrites()
        self._sizes = sizes

    def reason(self, text: str = "") -> Reason:
        """Returns the reason why this node needs something whole."""
        return Reason(text or f"{self.operator} needs all of it", self.node)

    @property
    def operator(self) -> str:
        """The operator's name: ``relu_`` for ``aten.relu_.default``."""
        return operator_name(self.node).replace("::", ".")

    def out_sizes(self) -> tuple[int, ...]:
        """Returns the full sizes of the node's (first) result, symbols replaced by distinct numbers."""
        value = self.node.meta["val"]
        return self._sizes(value[0] if isinstance(value, (list, tuple)) else value)

    def sizes_of(self, tensor: Any) -> tuple[int, ...]:
        """Returns the full sizes of a fake tensor, symbols replaced by distinct numbers."""
        return self._sizes(tensor)

    def unify(self, a: Dim, b: Dim) -> None:
        """Declares two dimensions to be the same axis."""
        axes.unify(a, b, self.reason(f"{self.operator} relates it to a dimension that is composed otherwise"))

    def unify_equal(self, a: Dim, b: Dim) -> None:
        """Declares two dimensions to be the same axis if they have one size, and keeps them whole otherwise."""
        if axes.size(a) == axes.size(b):
            self.unify(a, b)
        else:
            self.freeze(a, b, text=f"{self.operator} relates it to a dimension of another size")

    def freeze(self, *dims: Dim, text: str = "") -> None:
        """Keeps dimensions whole; ``text`` is the reason that the user reads."""
        for dim in dims:
            axes.freeze(dim, self.reason(text))

    def freeze_values(self, *values: Value | None, text: str = "") -> None:
        """Keeps all dimensions of these tensors whole."""
        for value in values:
            if value is not None:
                self.freeze(*value.dims, text=text)

    def widened(self, argument: str, value: Value, dim: int, text: str = "") -> Dim:
        """Returns a dimension of an operand that the operator needs whole.

        What is 0 at missing units can be cut all the same, since lowering puts zeros in their place. Any other
        dimension is kept whole.

        Args:
            argument: The operator's name of the operand.
            value: The operand.
            dim: The number of the dimension.
            text: The reason that the user reads.
        """
        whole = value.dims[dim]
        roots = list(axes.expand(whole))
        if not value.is_zero(dim) or any(map(axes.is_free, roots)) or all(root.frozen is not None for root in roots):
            self.freeze(whole, text=text)
            return whole
        self.rewrites.widens.append(Widen(argument, dim_index(dim, value.ndim), whole))
        return axes.fresh(axes.size(whole), self.reason(text))

    def narrowed(self, argument: str, value: Value, dim: int, part: Dim, text: str = "") -> None:
        """Keeps a dimension of an operand whole, of which the node only computes with what a worker keeps of ``part``.

        Args:
            argument: The operator's name of the operand.
            value: The operand.
            dim: The number of the dimension.
            part: A dimension of the same size.
            text: The reason that the user reads.
        """
        self.freeze(value.dims[dim], text=text)
        self.rewrites.narrows.append(Narrow(argument, dim_index(dim, value.ndim), part))

    def frozen(self, sizes: Sequence[int] | None = None) -> Value:
        """Returns a result that cannot be cut."""
        sizes = self.out_sizes() if sizes is None else sizes
        return Value(tuple(axes.fresh(s, self.reason()) for s in sizes), (False,) * len(sizes))

    def resize(self, argument: str, index: int | None, *dims: Dim) -> None:
        """Declares that the node's integer ``argument`` counts ``dims``; see `Resize`."""
        self.rewrites.resizes.append(Resize(argument, index, dims))

    def pin(self, argument: str, value: Any) -> None:
        """Fixes an argument whose default is computed from the size of a dimension that may be cut."""
        self.rewrites.pins[argument] = value

    def become(self, operator: Any) -> None:
        """Makes the node call another operator when cut, with the arguments that resizes and pins give it."""
        self.rewrites.operator = operator

    def contract(self, dim: Dim, *zero: bool) -> None:
        """Declares that a product is summed over ``dim``: missing units must contribute exactly 0."""
        if not any(zero):
            self.freeze(dim, text=f"{self.operator} sums over it, and no operand is 0 where a unit is missing")

    def within(
        self,
        value: Value,
        dims: Iterable[int],
        sizes: Sequence[int] | None = None,
        zero: bool = True,
        argument: str | None = None,
    ) -> Value:
        """Returns the result of an operator that mixes the indices of ``dims`` and treats those of others alike.

        Args:
            value: The operand.
            dims: The dimensions that are mixed, and stay whole.
            sizes: The sizes of the result; by default the node's.
            zero: Whether the operator makes zeros of zeros.
            argument: The operator's name of the operand, if lowering may widen it; see `widened`.
        """
        sizes = self.out_sizes() if sizes is None else sizes
        mixed = {dim_index(d, value.ndim) for d in dims}
        for d in mixed:
            if argument is None:
                self.freeze(value.dims[d])
            else:
                self.widened(argument, value, d)
        new = {d: axes.fresh(sizes[d], self.reason()) for d in mixed}
        return Value(
            tuple(new.get(d, value.dims[d]) for d in range(value.ndim)),
            tuple(zero and d not in mixed and value.is_zero(d) for d in range(value.ndim)),
        )

    def writes(self, target: Value, result_zero: Sequence[bool]) -> Value:
        """Returns the value of ``target`` after an in-place operator."""
        for dim, before, after in zip(target.dims, target.zero, result_zero, strict=True):
            if before and not after and any(root.frozen is None for root in axes.expand(dim)):
                target.storage.nonzero = True
        return Value(target.dims, tuple(result_zero), target.storage)


def dim_index(dim: int, ndim: int) -> int:
    """Returns the number of a dimension, counted from the front."""
    return dim + ndim if dim < 0 else dim


def dim_indices(dims: int | Sequence[int] | None, ndim: int) -> list[int]:
    """Returns the numbers of dimensions, counted from the front; None or an empty sequence means all of them."""
    if dims is None or (not isinstance(dims, int) and len(dims) == 0):
        return list(range(ndim))
    return [dim_index(d, ndim) for d in ([dims] if isinstance(dims, int) else dims)]
