"""The axes of a model as families that a policy may partition, and which of them meet in one parameter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from sdp_compile.ir.program import StateTensor
from sdp_compile.structure.families import Family
from sdp_compile.structure.layout import Layout, Leaf, Sum


def axis_families(
    layouts: Mapping[str, tuple[Layout, ...]],
    state: Mapping[str, StateTensor],
    flops: Mapping[str, float],
    order: tuple[str, ...],
) -> list[Family]:
    """One `Family` per named axis, in the order of the parameters; ``flops`` are per axis over all units."""
    units: dict[str, int] = {}
    nbytes: Counter[str] = Counter()
    parameters: dict[str, dict[str, None]] = {}
    depths: dict[str, int] = {}
    for name, dims in layouts.items():
        if state[name].kind != "parameter":
            continue
        for dim in dims:
            for leaf, depth in _with_depth(dim):
                if leaf.family is None:
                    continue
                units[leaf.family] = leaf.size
                parameters.setdefault(leaf.family, {})[name] = None
                depths[leaf.family] = max(depths.get(leaf.family, 0), depth)
        for family, share in _shares(dims).items():
            nbytes[family] += round(share * state[name].nbytes)
    position = {name: number for number, name in enumerate(order)}
    return [
        Family(
            name=family,
            kind="axis",
            units=count,
            unit_bytes=(nbytes[family] // count,) * count,
            unit_flops=(flops.get(family, 0.0) / count,) * count,
            module_path=next(iter(parameters[family])).rpartition(".")[0],
            depth=min(position.get(name, 0) for name in parameters[family]),
            parameters=tuple(parameters[family]),
            outer=depths[family],
        )
        for family, count in units.items()
    ]


def _with_depth(layout: Layout, depth: int = 0) -> Iterator[tuple[Leaf, int]]:
    if isinstance(layout, Leaf):
        yield layout, depth
    elif isinstance(layout, Sum):
        for part in layout.parts:
            yield from _with_depth(part, depth)
    else:
        for number, factor in enumerate(layout.factors):
            yield from _with_depth(factor, depth + number)


def _shares(dims: tuple[Layout, ...]) -> dict[str, float]:
    """For each family, the share of a tensor's elements that run through it."""
    outside: dict[str, float] = {}
    for dim in dims:
        for family in {leaf.family for leaf, _ in _with_depth(dim) if leaf.family is not None}:
            outside[family] = outside.get(family, 1.0) * (1.0 - _share(dim, family))
    return {family: 1.0 - rest for family, rest in outside.items()}


def _share(layout: Layout, family: str) -> float:
    if isinstance(layout, Leaf):
        return 1.0 if layout.family == family else 0.0
    if isinstance(layout, Sum):
        return sum(_share(part, family) * part.size for part in layout.parts) / layout.size
    outside = 1.0
    for factor in layout.factors:
        outside *= 1.0 - _share(factor, family)
    return 1.0 - outside


def conflicts(layouts: Mapping[str, tuple[Layout, ...]], state: Mapping[str, StateTensor]) -> frozenset[frozenset[str]]:
    """Pairs of axes that meet in one parameter element; an axis that meets itself stands alone in its set."""
    found: set[frozenset[str]] = set()
    for name, dims in layouts.items():
        if state[name].kind != "parameter":
            continue
        _meet([_collect(dim, found) for dim in dims], found)
    return frozenset(found)


def _collect(layout: Layout, found: set[frozenset[str]]) -> set[str]:
    if isinstance(layout, Leaf):
        return set() if layout.family is None else {layout.family}
    if isinstance(layout, Sum):
        return set().union(*(_collect(part, found) for part in layout.parts))
    return _meet([_collect(factor, found) for factor in layout.factors], found)


def _meet(groups: list[set[str]], found: set[frozenset[str]]) -> set[str]:
    for i, left in enumerate(groups):
        for right in groups[i + 1 :]:
            found.update(frozenset((a, b)) for a in left for b in right)
    return set().union(*groups)
