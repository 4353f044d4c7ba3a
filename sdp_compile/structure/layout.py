"""How the indices of one tensor dimension are composed of axes.

A dimension is a tree: a `Leaf` is one axis (or an anonymous index range that is never cut), a `Product` the row-major
product of its factors (what ``view`` makes), a `Sum` the concatenation of its parts (what ``cat`` and ``split`` make).
Everything that a worker keeps of a dimension follows from the units it owns of the axes at the leaves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Indices: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Leaf:
    """One axis of ``size`` units; ``family`` is None where it is never cut."""

    size: int
    family: str | None = None


@dataclass(frozen=True)
class Product:
    """Row-major product of ``factors``, outermost first."""

    factors: tuple[Layout, ...]

    @property
    def size(self) -> int:
        return prod(factor.size for factor in self.factors)


@dataclass(frozen=True)
class Sum:
    """Concatenation of ``parts``."""

    parts: tuple[Layout, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)


Layout: TypeAlias = Leaf | Product | Sum


def leaves(layout: Layout) -> Iterator[Leaf]:
    """The leaves of a layout, from the left."""
    if isinstance(layout, Leaf):
        yield layout
        return
    for child in layout.factors if isinstance(layout, Product) else layout.parts:
        yield from leaves(child)


def families(layout: Layout) -> list[str]:
    """The families that can cut this dimension, outermost first, each once."""
    return list(dict.fromkeys(leaf.family for leaf in leaves(layout) if leaf.family is not None))


def kept_size(layout: Layout, kept: Mapping[str, int]) -> int:
    """The size of the dimension on a worker that keeps ``kept[family]`` units of each family named there."""
    if isinstance(layout, Leaf):
        return kept.get(layout.family, layout.size) if layout.family is not None else layout.size
    if isinstance(layout, Product):
        return prod(kept_size(factor, kept) for factor in layout.factors)
    return sum(kept_size(part, kept) for part in layout.parts)


def kept_indices(layout: Layout, owned: Mapping[str, Indices]) -> Indices:
    """The indices of the dimension that a worker keeps, ascending, given the units it owns of the cut families."""
    if isinstance(layout, Leaf):
        mine = owned.get(layout.family) if layout.family is not None else None
        return np.arange(layout.size, dtype=np.int64) if mine is None else mine
    if isinstance(layout, Sum):
        offsets = np.cumsum([0, *(part.size for part in layout.parts)])
        return np.concatenate([kept_indices(p, owned) + o for p, o in zip(layout.parts, offsets, strict=False)])
    result = np.zeros(1, dtype=np.int64)
    for factor in layout.factors:
        result = (result[:, None] * factor.size + kept_indices(factor, owned)).reshape(-1)
    return result


def spread(layout: Layout, per_unit: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """One number per index of the dimension: the product of ``per_unit`` over the units that the index runs through."""
    if isinstance(layout, Leaf):
        numbers = per_unit.get(layout.family) if layout.family is not None else None
        return np.ones(layout.size) if numbers is None else numbers
    if isinstance(layout, Sum):
        return np.concatenate([spread(part, per_unit) for part in layout.parts])
    result = np.ones(1)
    for factor in layout.factors:
        result = np.outer(result, spread(factor, per_unit)).reshape(-1)
    return result


def restrict(layout: Layout, cut: Collection[str]) -> Layout:
    """The same dimension with every family outside of ``cut`` made anonymous, simplified."""
    if isinstance(layout, Leaf):
        return layout if layout.family in cut else Leaf(layout.size)
    if isinstance(layout, Product):
        factors: list[Layout] = []
        for factor in (restrict(factor, cut) for factor in layout.factors):
            if factors and not families(factors[-1]) and not families(factor):
                factors[-1] = Leaf(factors[-1].size * factor.size)
            else:
                factors.append(factor)
        return factors[0] if len(factors) == 1 else Product(tuple(factors))
    parts: list[Layout] = []
    for part in (restrict(part, cut) for part in layout.parts):
        if parts and not families(parts[-1]) and not families(part):
            parts[-1] = Leaf(parts[-1].size + part.size)
        else:
            parts.append(part)
    return parts[0] if len(parts) == 1 else Sum(tuple(parts))
