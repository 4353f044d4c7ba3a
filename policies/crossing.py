"""Whether parameters that are cut along several axes keep an owner for each element (``axes="all"``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sdp_compile.errors import PolicyError
from sdp_compile.structure.families import Structure
from sdp_compile.structure.layout import Layout, Leaf, Product, restrict


def check_crossings(structure: Structure, parameters: Iterable[str], shares: Mapping[str, float], workers: int) -> None:
    """PolicyError for a parameter whose axes, each owned by a share of the workers, may have no worker in common.

    k sets of P of N workers always share one if kP > (k-1)N: the workers that each leaves out do not add up to all.
    """
    failing = {}
    left_out = {family: 1 - share for family, share in shares.items()}
    once = dict.fromkeys(shares, 1.0)
    for name in parameters:
        layouts = [restrict(layout, frozenset(shares)) for layout in structure.layouts.get(name, ())]
        if sum(_largest(layout, left_out) for layout in layouts) > 1 - 1e-9:
            failing[name] = int(sum(_largest(layout, once) for layout in layouts))
    if not failing:
        return
    name, crossing = max(failing.items(), key=lambda item: item[1])
    needed = (crossing - 1) * workers // crossing + 1
    raise PolicyError(
        f"axes='all' cuts {name!r} along {crossing} axes; at this coverage some of its elements could "
        f"have no owner ({len(failing)} parameters in all are like this). Use replicas={needed} of "
        f"{workers} workers or more, or axes='disjoint'."
    )


def _largest(layout: Layout, figures: Mapping[str, float]) -> float:
    """The largest sum of the figures of all families that one index runs through."""
    if isinstance(layout, Leaf):
        return figures[layout.family] if layout.family is not None else 0.0
    if isinstance(layout, Product):
        return sum(_largest(factor, figures) for factor in layout.factors)
    return max((_largest(part, figures) for part in layout.parts), default=0.0)
