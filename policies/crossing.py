"""Checks that parameters cut along several axes (``axes="all"``) have an owner for each element."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sdp_compile.errors import PolicyError
from sdp_compile.structure.families import Structure
from sdp_compile.structure.layout import Layout, Leaf, Product, restrict


def check_crossings(structure: Structure, parameters: Iterable[str], shares: Mapping[str, float], workers: int) -> None:
    """Checks that the owners of any units that meet in one parameter have a worker in common.

    k sets of P of N workers always have a common worker if kP > (k-1)N, because then the workers that each set leaves
    out do not add up to all.

    Args:
        structure: The structure of the model.
        parameters: The parameters to check.
        shares: For each axis that is cut, the share of the workers that own each unit.
        workers: The number of workers.

    Raises:
        PolicyError: Some parameter's elements might have no owner. The error says how many replicas are enough.
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
        f"axes='all' cuts {name!r} along {crossing} axes, and at this coverage some of its elements could have no "
        f"owner (as in {len(failing)} parameters in all). Use at least replicas={needed} of {workers} workers, or "
        "axes='disjoint'."
    )


def _largest(layout: Layout, figures: Mapping[str, float]) -> float:
    """Returns the largest sum of figures over the families that one index runs through."""
    if isinstance(layout, Leaf):
        return figures[layout.family] if layout.family is not None else 0.0
    if isinstance(layout, Product):
        return sum(_largest(factor, figures) for factor in layout.factors)
    return max((_largest(part, figures) for part in layout.parts), default=0.0)
