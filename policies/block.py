"""Block-level partitioning: each worker keeps some residual branches and drops the others."""

from __future__ import annotations

from typing import Literal

import numpy as np

from sdp_compile.errors import NothingToPartition, PolicyError
from sdp_compile.ownership.partition import Partition
from sdp_compile.policies.advice import advice
from sdp_compile.policies.base import Policy
from sdp_compile.policies.designs import designs
from sdp_compile.policies.nodes import checked_node_size
from sdp_compile.policies.placement import (
    MOST_DEFAULT_SLOTS,
    Grid,
    Placement,
    divisors,
    grid,
    replicas_for,
    rounding_note,
    weights_of,
)
from sdp_compile.policies.registry import register_policy
from sdp_compile.policies.rules import check_rules, decide
from sdp_compile.structure.families import Family, Structure
from sdp_compile.structure.layout import Indices

FAMILIES = {"branch": "blocks", "layer": "layers"}


@register_policy("block")
class BlockPolicy(Policy):
    """Gives each residual block P owners. The other workers run only the skip path.

    With ``granularity="branch"``, a block is one residual branch. With ``"layer"``, it is all branches of one module.
    See `Policy` for the fields.
    """

    level: Literal["block"] = "block"
    design: str = "balanced"

    def partition(self, structure: Structure, workers: int) -> Partition:
        """Returns the owners of each block.

        Raises:
            NothingToPartition: The model has no blocks, or every worker would own all of them.
            PolicyError: A rule or another field does not fit the model.
        """
        check_rules(self.rules, structure.layouts)
        asked = grid(workers, self.coverage, self.replicas, self.slots)
        if workers == 1 or (asked.replicas == workers and not self.rules):
            return Partition(notes=["Every worker owns the whole model: this is data parallelism."])
        family = self._family(structure, workers)
        asked, raised = self._feasible(family, asked)
        replicas = self._replicas(structure, family, asked)
        if (replicas == workers).all():
            raise NothingToPartition(
                f"All {family.units} blocks of the model would be owned by all {workers} workers. "
                f"{' '.join(raised) or 'The rules share them.'}{advice(self, structure, workers)}"
            )
        slots = self._slots(replicas, asked)
        placement = Placement(
            family.name,
            family.kind,
            workers,
            slots,
            replicas * slots // workers,
            weights_of(family),
            seed=self.seed,
            node_size=checked_node_size(self.node_size, workers),
        )
        (owners,) = designs()[self.design]([placement])
        return Partition({family.name: owners}, [*rounding_note(self.coverage, asked), *raised])

    def _family(self, structure: Structure, workers: int) -> Family:
        family = structure.by_name.get(FAMILIES[self.granularity])
        if family is None or not family.units:
            raise NothingToPartition(
                "The model has no residual blocks: no branch f in x + f(x) can be dropped."
                + advice(self, structure, workers)
            )
        return family

    def _feasible(self, family: Family, asked: Grid) -> tuple[Grid, list[str]]:
        """Raises the number of owners per block, if necessary, until every worker owns a block."""
        share = max(asked.share, asked.needed_share(family.units))
        if share == asked.share:
            return asked, []
        feasible = Grid(asked.workers, asked.slots, share)
        text = (
            f"{family.units} blocks are too few to give each {asked.replicas} of {asked.workers} workers: some worker "
            "would own none."
        )
        if self.strict:
            raise PolicyError(f"{text} The smallest feasible value is replicas={feasible.replicas} (strict=True).")
        return feasible, [f"{text} Each block has {feasible.replicas} owners instead."]

    def _replicas(self, structure: Structure, family: Family, asked: Grid) -> Indices:
        """Returns the number of owners of each block, with the rules applied."""
        replicas = np.full(family.units, asked.replicas, dtype=np.int64)
        tensors: dict[int, list[str]] = {}
        for tensor, unit in structure.members.get(family.name, {}).items():
            tensors.setdefault(unit, []).append(tensor)
        for unit in range(family.units):
            decision = decide(self.rules, tensors.get(unit, ()))
            if decision is None:
                continue
            override = decision.override
            if override is None:
                replicas[unit] = asked.workers
                continue
            if override.slots is not None or override.design is not None or override.align is not None:
                raise PolicyError(
                    f"The rule {decision.pattern!r} names a block. All blocks are placed together, so for blocks a "
                    "rule can change coverage or replicas only."
                )
            if override.coverage is not None or override.replicas is not None:
                replicas[unit] = replicas_for(asked.workers, override.coverage, override.replicas)
        return replicas

    def _slots(self, replicas: Indices, asked: Grid) -> int:
        """Returns a number of cells such that each block's owners are whole cells; the number asked for if possible."""
        workers = asked.workers
        fitting = [count for count in divisors(workers) if not (replicas * count % workers).any()]
        if asked.slots in fitting:
            return asked.slots
        if self.slots is not None:
            raise PolicyError(
                f"slots={self.slots} does not fit the replicas that the rules give to single blocks. "
                f"Possible: {', '.join(map(str, fitting))}."
            )
        return max((count for count in fitting if count <= MOST_DEFAULT_SLOTS and count > 1), default=workers)
