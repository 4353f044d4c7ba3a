"""Neuron-level partitioning: axes of the network are cut, and each worker keeps some units of each axis."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np

from sdp_compile.errors import NothingToPartition, PolicyError
from sdp_compile.ownership.owners import Ownership
from sdp_compile.ownership.partition import Partition
from sdp_compile.policies.advice import advice
from sdp_compile.policies.base import Policy
from sdp_compile.policies.crossing import check_crossings
from sdp_compile.policies.designs import designs
from sdp_compile.policies.nodes import checked_node_size
from sdp_compile.policies.placement import Grid, Placement, grid, rounding_note, weights_of
from sdp_compile.policies.registry import register_policy
from sdp_compile.policies.rules import Decision, check_rules, decide
from sdp_compile.policies.selection import Candidate, choose_disjoint
from sdp_compile.structure.families import Family, Structure

MEAN_COUNTS = 1e-3
"""Weight of a byte saved on average, relative to a byte saved on the most loaded worker.

It decides where the most loaded worker saves nothing, as with 3 heads in 4 slots of which each worker owns 3.
"""


@register_policy("neuron")
class NeuronPolicy(Policy):
    """Cuts axes, such as hidden neurons, heads and channels, so that each unit has P owners.

    With ``axes="disjoint"``, it cuts the axes that save most bytes among those that do not meet in one parameter. Every
    element of a cut parameter then has exactly P owners. Axes along the residual stream need ``scope="all"``.
    See `Policy` for the fields.
    """

    level: Literal["neuron"] = "neuron"
    design: str = "cyclic"

    def partition(self, structure: Structure, workers: int) -> Partition:
        """Returns the owners of each unit of the axes that are cut.

        Raises:
            NothingToPartition: No axis can be cut.
            PolicyError: A rule or another field does not fit the model.
        """
        check_rules(self.rules, structure.layouts)
        asked = grid(workers, self.coverage, self.replicas, self.slots)
        if workers == 1 or (asked.replicas == workers and not self.rules):
            return Partition(notes=["Every worker owns the whole model: this is data parallelism."])
        placements, notes = self._placements(structure, workers, asked)
        chosen = placements if self.axes == "all" else self._disjoint(structure, placements, notes)
        if not chosen:
            raise NothingToPartition(_why_nothing(structure, notes) + advice(self, structure, workers))
        if self.axes == "all":
            self._check_crossings(structure, chosen, workers)
        return Partition(_place(chosen), [*rounding_note(self.coverage, asked), *notes])

    def _placements(
        self, structure: Structure, workers: int, asked: Grid
    ) -> tuple[dict[str, tuple[str, Placement]], list[str]]:
        """Returns the design and the placement of each axis that may be cut, and notes for the report."""
        result: dict[str, tuple[str, Placement]] = {}
        raised: dict[tuple[int, int], list[str]] = defaultdict(list)
        unaligned, residual = [], []
        for family in structure.axes:
            decision = decide(self.rules, family.parameters)
            if decision is not None and decision.override is None:
                continue
            if family.name in structure.residual and self.scope != "all":
                residual.append(family.name)
                continue
            override = decision.override if decision is not None else None
            local = self.placing(override)
            cells = grid(workers, local.coverage, local.replicas, local.slots) if override is not None else asked
            share = max(cells.share, cells.needed_share(family.units))
            if share > cells.share:
                self._refuse_raising(family, cells, share, decision)
                raised[family.units, share * workers // cells.slots].append(family.name)
            if share == cells.slots:
                continue
            align = local.align or 1
            if align > 1 and -(-family.units // align) < cells.slots:
                unaligned.append(family.name)
            placement = Placement(
                family.name,
                family.kind,
                workers,
                cells.slots,
                np.full(family.units, share),
                weights_of(family),
                align,
                self.seed,
                checked_node_size(self.node_size, workers),
            )
            result[family.name] = (local.design or "cyclic", placement)
        notes = [
            f"{_listed(names)}: {units} units are too few for this coverage, so each has {owners} owners of "
            f"{workers} workers."
            for (units, owners), names in raised.items()
        ]
        if unaligned:
            notes.append(
                f"{_listed(unaligned)}: too few units for slots that start at multiples of align={self.align}."
            )
        if residual:
            notes.append(f"{_listed(residual)}: left whole, since axes along the residual stream need scope='all'.")
        return result, notes

    def _refuse_raising(self, family: Family, cells: Grid, share: int, decision: Decision | None) -> None:
        """Raises `PolicyError` for an axis with too few units if the user insists on exactly this coverage."""
        override = decision.override if decision is not None else None
        by_rule = override is not None and (override.coverage or override.replicas or override.slots)
        if not (self.strict or by_rule):
            return
        because = f"the rule {decision.pattern!r} names it" if by_rule and decision is not None else "strict=True"
        raise PolicyError(
            f"The axis {family.name!r} in {family.module_path or 'the model'} has {family.units} units, too few to "
            f"give each {cells.replicas} of {cells.workers} workers, and {because}. The smallest feasible value is "
            f"replicas={share * cells.workers // cells.slots}."
        )

    def _disjoint(
        self, structure: Structure, placements: dict[str, tuple[str, Placement]], notes: list[str]
    ) -> dict[str, tuple[str, Placement]]:
        savings: dict[object, float] = {}
        candidates = []
        for name, (design, placement) in placements.items():
            family = structure.by_name[name]
            # Equal layers save equally much. Only a random design depends on the name.
            key = (
                design,
                name if design == "random" else "",
                family.unit_bytes,
                placement.slots,
                int(placement.shares[0]),
            )
            if key not in savings:
                (owners,) = designs()[design]([placement])
                loads = owners.loads(family.unit_bytes, placement.workers)
                savings[key] = family.nbytes - float(loads.max()) + MEAN_COUNTS * (family.nbytes - float(loads.mean()))
            candidates.append(Candidate(name, savings[key], family.outer))
        chosen = choose_disjoint(candidates, structure.conflicts)
        whole = [name for name in placements if name not in chosen]
        if whole:
            notes.append(
                f"{_listed(whole)}: left whole, since each meets an axis that is cut, or itself, in a parameter."
            )
        return {name: task for name, task in placements.items() if name in chosen}

    def _check_crossings(self, structure: Structure, chosen: dict[str, tuple[str, Placement]], workers: int) -> None:
        """Checks parameters that several axes cut. Nested sets always have a worker in common, others may have none."""
        parameters = list(dict.fromkeys(one for name in chosen for one in structure.by_name[name].parameters))
        placed = {name: (design, placement) for name, (design, placement) in chosen.items() if design != "nested"}
        shares = {name: float(placement.shares[0]) / placement.slots for name, (_, placement) in placed.items()}
        check_crossings(structure, parameters, shares, workers)
        private = {name: 1 / placement.slots for name, (design, placement) in placed.items() if design == "core"}
        try:
            check_crossings(structure, parameters, {**shares, **private}, workers)
        except PolicyError:
            raise PolicyError(
                "axes='all' cuts a parameter along several axes, and with design='core' private units that meet there "
                "may have no owner in common. Use another design, or axes='disjoint'."
            ) from None


def _place(chosen: dict[str, tuple[str, Placement]]) -> dict[str, Ownership]:
    by_design: dict[str, list[Placement]] = defaultdict(list)
    for design, placement in chosen.values():
        by_design[design].append(placement)
    placed: dict[str, Ownership] = {}
    for design, placements in by_design.items():
        owners = designs()[design](placements)
        placed |= {placement.family: owned for placement, owned in zip(placements, owners, strict=True)}
    return {name: placed[name] for name in chosen}


def _why_nothing(structure: Structure, notes: Sequence[str]) -> str:
    if not structure.axes:
        text = "The model has no axis that can be cut"
        if structure.frozen:
            first = structure.frozen[0]
            text += f": {len(structure.frozen)} parameter dimensions are frozen, such as "
            text += f"dimension {first.dim} of {first.parameter!r} ({first.reason})"
        return f"{text}."
    reasons = " ".join(notes) or f"The rules share all of its {len(structure.axes)} axes."
    return f"None of the model's axes can be cut. {reasons}"


def _listed(names: Sequence[str], most: int = 3) -> str:
    """Returns the first names, and the number of the others."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
