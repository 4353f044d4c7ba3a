"""The default policy, which chooses between neuron and block level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sdp_compile.errors import NothingToPartition, PolicyError
from sdp_compile.formatting import size
from sdp_compile.ownership.loads import flops_per_worker
from sdp_compile.ownership.partition import Partition
from sdp_compile.policies.advice import advice, without_advice
from sdp_compile.policies.base import Policy
from sdp_compile.policies.block import BlockPolicy
from sdp_compile.policies.neuron import NeuronPolicy
from sdp_compile.policies.registry import register_policy
from sdp_compile.structure.families import Structure

CLOSE = 0.05
"""If the savings of two levels differ by less than this share of the larger, the balance of their FLOPs decides."""


@dataclass(frozen=True)
class Prospect:
    """What partitioning at one level would give.

    Attributes:
        level: The level, "neuron" or "block".
        partition: The partition.
        saved: Bytes of parameters that the most loaded worker saves.
        imbalance: FLOPs of the worker with most, divided by the mean.
    """

    level: str
    partition: Partition
    saved: float
    imbalance: float

    def __str__(self) -> str:
        return (
            f"{self.level} level saves {size(self.saved)} of parameters on the most loaded worker, whose FLOPs are "
            f"{self.imbalance:.2f} of the mean"
        )


@register_policy("auto")
class AutoPolicy(Policy):
    """Partitions at the level that saves the most loaded worker more memory. If both are close, balance decides.

    A ``design`` of None takes the default of the chosen level.
    """

    level: Literal["auto"] = "auto"

    def partition(self, structure: Structure, workers: int) -> Partition:
        """Returns the partition of the better level, with a note that says why it was chosen.

        Raises:
            NothingToPartition: Neither level has anything to cut.
            PolicyError: A rule or another field does not fit the model.
        """
        fields = {name: getattr(self, name) for name in Policy.model_fields if name != "level"}
        fields = {name: value for name, value in fields.items() if value is not None}
        prospects: list[Prospect] = []
        refusals: list[PolicyError] = []
        for policy in (NeuronPolicy(**fields), BlockPolicy(**fields)):
            try:
                with without_advice():
                    partition = policy.partition(structure, workers)
            except PolicyError as error:
                refusals.append(error)
                continue
            if not partition:
                return partition
            prospects.append(_prospect(policy.level, structure, partition, workers))
        if not prospects:
            for refusal in refusals:
                if not isinstance(refusal, NothingToPartition):
                    raise refusal
            reasons = " ".join(map(str, refusals))
            raise NothingToPartition(
                f"Nothing to partition at neuron or block level. {reasons}{advice(self, structure, workers)}"
            )
        return _with_reason(prospects, refusals)


def _with_reason(prospects: list[Prospect], refusals: list[PolicyError]) -> Partition:
    if len(prospects) == 1:
        (best,) = prospects
        reason = f"{best}. The other level does not work ({refusals[0]})"
    else:
        by_saving = sorted(prospects, key=lambda prospect: -prospect.saved)
        close = by_saving[1].saved >= (1 - CLOSE) * by_saving[0].saved
        best, other = sorted(by_saving, key=lambda prospect: round(prospect.imbalance, 3)) if close else by_saving
        why = "by balance, because the savings are close" if close else "by memory"
        reason = f"{best}; {other} (chosen {why})"
    return Partition(best.partition, [f"Auto chose the {best.level} level: {reason}.", *best.partition.notes])


def _prospect(level: str, structure: Structure, partition: Partition, workers: int) -> Prospect:
    owned, total = np.zeros(workers), 0
    for name, owners in partition.items():
        owned += owners.loads(structure.by_name[name].unit_bytes, workers)
        total += structure.by_name[name].nbytes
    flops = flops_per_worker(structure.flops, structure.families, partition, workers)
    mean = float(flops.mean())
    return Prospect(level, partition, total - float(owned.max()), float(flops.max()) / mean if mean > 0 else 1.0)
