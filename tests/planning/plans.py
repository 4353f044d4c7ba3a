"""Plans of any kind for property tests, and the owners of their elements by set arithmetic as the oracle."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from sdp_compile.errors import PolicyError
from sdp_compile.planning.making import make_plan
from sdp_compile.planning.plan import Plan
from sdp_compile.policies import AutoPolicy, BlockPolicy, NeuronPolicy, Policy
from sdp_compile.structure.families import Structure
from tests.ownership.layouts import units_of
from tests.synthetic import analysis_of, attention, blocks, convolutions, mlp, recurrent


class Given(Policy):
    """Returns what it is given, as a policy of a user's own would."""

    owners: Mapping[str, Any]

    def partition(self, structure: Structure, workers: int) -> Mapping[str, Any]:
        return self.owners


def plan_for(structure: Structure, policy: Policy, workers: int, **capture: Any) -> Plan:
    return make_plan(analysis_of(structure, **capture), policy, workers)


STRUCTURES = {
    "mlp": mlp(hidden=10, width=3, layers=2),
    "attention": attention(),
    "convolutions": convolutions((6, 5, 4)),
    "recurrent": recurrent(7),
    "blocks": blocks((4, 6, 3, 5)),
}


@st.composite
def plans(draw: st.DrawFn) -> tuple[Structure, Plan]:
    """Any structure, any policy that accepts it, 1 to 6 workers."""
    structure = STRUCTURES[draw(st.sampled_from(sorted(STRUCTURES)))]
    workers = draw(st.integers(1, 6))
    fields = {
        "replicas": draw(st.integers(1, workers)),
        "design": draw(st.sampled_from(["cyclic", "balanced", "random", "nested", "core"])),
        "axes": draw(st.sampled_from(["disjoint", "all"])),
        "align": draw(st.sampled_from([1, 2])),
        "node_size": draw(st.sampled_from([None, *(size for size in range(1, workers + 1) if workers % size == 0)])),
    }
    level = draw(st.sampled_from([NeuronPolicy, BlockPolicy, AutoPolicy]))
    try:
        return structure, plan_for(structure, level(**fields), workers)
    except PolicyError:
        return structure, plan_for(structure, NeuronPolicy(coverage=1.0), workers)


def owners_by_element(structure: Structure, plan: Plan, name: str) -> np.ndarray:
    """For each element of a tensor the set of workers that own every unit it runs through, computed one by one."""
    partition = {family.name: list(plan.owners(family)) for family in plan.families}
    block = structure.members[plan.block_family].get(name) if plan.block_family else None
    whole = set(range(plan.workers)) if block is None else set(partition[plan.block_family][block])
    dims = [units_of(layout) for layout in structure.layouts[name]]
    owners = np.empty(tuple(map(len, dims)), dtype=object)
    for element in itertools.product(*(range(len(dim)) for dim in dims)):
        units = set().union(*(dim[index] for dim, index in zip(dims, element, strict=True)))
        cut = [set(partition[family][unit]) for family, unit in units if family in partition]
        owners[element] = frozenset(whole.intersection(*cut))
    return owners
