"""What each worker computes, given who owns what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from sdp_compile.ownership.owners import Ownership
from sdp_compile.structure.families import Family, FlopTerm


def flops_per_worker(
    work: Iterable[FlopTerm], families: Iterable[Family], ownership: Mapping[str, Ownership], workers: int
) -> NDArray[np.float64]:
    """The forward FLOPs of each worker: those of cut axes in proportion to what it keeps, none for dropped blocks."""
    share: dict[str, NDArray[np.float64]] = {}
    result = np.zeros(workers)
    for family in families:
        if family.name not in ownership:
            continue
        if family.kind == "axis":
            share[family.name] = ownership[family.name].loads(np.ones(family.units), workers) / family.units
        elif family.unit_flops:
            result += ownership[family.name].loads(family.unit_flops, workers) - sum(family.unit_flops)
    for term in work:
        scaled = np.full(workers, term.flops)
        for axis in term.axes:
            scaled *= share.get(axis, 1.0)
        result += scaled
    return result
