"""Figures of a plan that several presentations show: bytes by owner and worker, alike families, frozen dimensions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sdp_compile.ownership.owners import OwnerSet, OwnerSets
from sdp_compile.planning.families import CutFamily
from sdp_compile.structure.families import Frozen

if TYPE_CHECKING:
    from sdp_compile.planning.plan import Plan


def dense_bytes(plan: Plan) -> int:
    """Returns the bytes of all parameters of the full model."""
    return sum(tensor.nbytes for tensor in plan.state.values() if tensor.kind == "parameter")


def parameter_bytes(plan: Plan) -> NDArray[np.float64]:
    """Returns the parameter bytes that each worker owns, by rank."""
    result = np.zeros(plan.workers)
    for owners, nbytes in _bytes_by_owners(plan).items():
        result[np.asarray(owners, dtype=np.int64)] += nbytes
    return result


def shared_share(plan: Plan) -> float:
    """Returns the share of the parameter bytes that all workers own, from 0 to 1."""
    return _bytes_by_owners(plan).get(tuple(range(plan.workers)), 0) / max(1, dense_bytes(plan))


def _bytes_by_owners(plan: Plan) -> dict[OwnerSet, int]:
    known, nbytes = OwnerSets(), list[int]()
    for name, tensor in plan.state.items():
        for piece in plan.pieces(name) if tensor.kind == "parameter" else ():
            number = known.number(piece.owners)
            nbytes += [0] * (number + 1 - len(nbytes))
            nbytes[number] += piece.numel * tensor.dtype.itemsize
    return dict(zip(known.sets, nbytes, strict=True))


def alike_families(plan: Plan) -> list[list[CutFamily]]:
    """Groups the families that have the same kind, units, bytes and owners, in the order of the plan."""
    groups: dict[object, list[CutFamily]] = {}
    for family in plan.families:
        groups.setdefault((family.kind, family.units, family.unit_bytes, plan.owners(family)), []).append(family)
    return list(groups.values())


def frozen_by_reason(frozen: Iterable[Frozen]) -> dict[tuple[str, str], list[Frozen]]:
    """Groups frozen dimensions by reason and operator."""
    groups: dict[tuple[str, str], list[Frozen]] = {}
    for dimension in frozen:
        groups.setdefault((dimension.reason, dimension.operator), []).append(dimension)
    return groups
