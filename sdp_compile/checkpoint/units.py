"""Which units of a plan the elements of a tensor belong to, for errors that name what was lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod

from sdp_compile.checkpoint.manifest import LayoutEntry, Manifest, PlanEntry
from sdp_compile.planning.assignment import Assignment
from sdp_compile.planning.boxes import Box
from sdp_compile.structure.layout import Layout, Leaf, Product

Units = tuple[str, int, int]
"""A family, the first of its units, and the end of them."""


def layouts_of(plan: Assignment) -> dict[str, tuple[LayoutEntry, ...]]:
    """Returns how the dimensions of the tensors that are cut are composed of units."""
    return {name: tuple(map(_entry, layouts)) for name, layouts in plan.layouts.items() if plan.is_cut(name)}


def blocks_of(plan: Assignment) -> dict[str, tuple[str, int]]:
    """Returns the family and the unit of each tensor of a block that is partitioned."""
    family = plan.block_family
    return {} if family is None else {name: (family, unit) for name, unit in plan.members.items()}


def units_of(manifest: Manifest, name: str, box: Box) -> set[Units]:
    """Returns the units that elements of a tensor belong to; empty for what all workers share."""
    plan = manifest.plan
    if plan is None:
        return set()
    found = set(_block(plan, name))
    for layout, start, size in zip(plan.layouts.get(name, ()), box.offsets, box.sizes, strict=False):
        found.update(_touched(layout, start, start + size))
    return found


def merged(found: Iterable[Units]) -> Mapping[str, str]:
    """Returns the units of each family in words: ``0-3, 8``."""
    runs: dict[str, list[list[int]]] = {}
    for family, start, stop in sorted(found):
        known = runs.setdefault(family, [])
        if known and start <= known[-1][1]:
            known[-1][1] = max(known[-1][1], stop)
        else:
            known.append([start, stop])
    return {
        family: ", ".join(str(start) if stop == start + 1 else f"{start}-{stop - 1}" for start, stop in known)
        for family, known in runs.items()
    }


def _entry(layout: Layout) -> LayoutEntry:
    if isinstance(layout, Leaf):
        return LayoutEntry(size=layout.size, family=layout.family)
    if isinstance(layout, Product):
        return LayoutEntry(size=layout.size, product=tuple(map(_entry, layout.factors)))
    return LayoutEntry(size=layout.size, sum=tuple(map(_entry, layout.parts)))


def _block(plan: PlanEntry, name: str) -> Iterator[Units]:
    if name in plan.blocks:
        family, unit = plan.blocks[name]
        yield family, unit, unit + 1


def _touched(layout: LayoutEntry, start: int, stop: int) -> Iterator[Units]:
    """Yields the units that the indices of a dimension run through."""
    if start >= stop:
        return
    if layout.family is not None:
        yield layout.family, start, stop
    first = 0
    for part in layout.sum:
        yield from _touched(part, max(start - first, 0), min(stop - first, part.size))
        first += part.size
    if layout.product:
        yield from _touched_factors(layout.product, start, stop)


def _touched_factors(factors: tuple[LayoutEntry, ...], start: int, stop: int) -> Iterator[Units]:
    outer, inner = factors[0], factors[1:]
    size = prod(factor.size for factor in inner)
    first, last = start // size, (stop - 1) // size
    yield from _touched(outer, first, last + 1)
    if not inner:
        return
    if last - first > 1 or stop - start >= size:
        yield from _touched_factors(inner, 0, size)
        return
    for at in range(first, last + 1):
        yield from _touched_factors(inner, max(start - at * size, 0), min(stop - at * size, size))
