"""How much each worker computes, given who owns what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from sdp_compile.ownership.owners import Ownership
from sdp_compile.structure.families import Family, FlopTerm


def flops_per_worker(
    work: Iterable[FlopTerm], families: Iterable[Family], ownership: Mapping[str, Ownership], workers: int
) -> NDArray[np.float64]:
    """Returns the forward FLOPs of each worker.

    Work over an axis that is cut shrinks with the share of its units that the worker owns. Blocks that the worker does
    not own cost nothing.

    Args:
        work: The FLOPs of the full model, by the axes that they run over.
        families: The families of the model.
        ownership: The owners of each unit of each family that is cut.
        workers: The number of workers.
    """
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
