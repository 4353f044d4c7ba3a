"""Makes a plan from an analysis and a policy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sdp_compile.errors import PlanError
from sdp_compile.ownership.partition import checked
from sdp_compile.planning.families import CutFamily, layouts_of_state, restricted_work
from sdp_compile.planning.nodes import Launch, with_nodes
from sdp_compile.planning.plan import Plan
from sdp_compile.policies.base import Policy
from sdp_compile.structure.analysis import Analysis


def make_plan(analysis: Analysis, policy: Policy, workers: int, launch: Launch | None = None) -> Plan:
    """Asks the policy for a partition of the structure, validates it and completes it to a plan.

    Args:
        analysis: What `sdp_compile.structure.analysis.analyse` found in the model.
        policy: The policy that decides the owners of each unit.
        workers: Number of workers N, at least 1.
        launch: What the launcher says about nodes, for a policy without ``node_size``.

    Raises:
        PolicyError: If the policy does not fit the model, or its partition is not valid.
    """
    capture, structure = analysis.capture, analysis.structure
    parameters = [name for name, tensor in capture.state.items() if tensor.kind == "parameter"]
    asked, node_size, notes = with_nodes(policy, workers, launch)
    partition = checked(structure, asked.partition(structure, workers), workers, parameters)
    cut = [family for family in structure.families if family.name in partition]
    names = frozenset(family.name for family in cut)
    block_family = next((family.name for family in cut if family.kind == "block"), None)
    members = dict(structure.members.get(block_family, {})) if block_family is not None else {}
    if policy.masking == "backward":
        members = {name: unit for name, unit in members.items() if name in parameters}
    return Plan(
        workers=workers,
        families=tuple(CutFamily.of(family, partition[family.name].replicas) for family in cut),
        ownership={family.name: partition[family.name] for family in cut},
        state=dict(capture.state),
        aliases=dict(capture.aliases),
        layouts=layouts_of_state(capture.state, structure, names, policy.masking),
        members=members,
        order=tuple(name for name in structure.order if name in capture.state),
        work=restricted_work(structure.flops, names),
        policy=policy.describe(),
        masking=policy.masking,
        rescale=policy.rescale,
        notes=(*notes, *partition.notes, *structure.notes),
        frozen=structure.frozen,
        node_size=node_size,
    )


def refitted(plan: Plan, analysis: Analysis, rank: int) -> Plan:
    """Returns the same plan for another capture of the same model, such as one in other dtypes.

    Args:
        plan: The plan that the workers train with.
        analysis: The analysis of the other capture; its lifted constants may differ.
        rank: The worker whose part must stay as it is.

    Raises:
        PlanError: If this capture of the model needs all of something that the plan cuts.
    """
    state, structure = analysis.capture.state, analysis.structure
    cut = frozenset(family.name for family in plan.families)
    layouts = layouts_of_state(state, structure, cut, plan.masking)
    result = replace(plan, state=dict(state), layouts=layouts)
    for name in plan.state:
        before, now = plan.kept(name, rank), result.kept(name, rank)
        same = (before is None) == (now is None) and all(map(np.array_equal, before or (), now or ()))
        if not same:
            raise _does_not_fit(f"all of {name!r}, which the plan cuts")
    trained = {name for name, tensor in plan.state.items() if tensor.kind == "parameter" and tensor.requires_grad}
    unseen = [name for name in structure.order if name in trained and name not in plan.order]
    if unseen and plan.workers > 1:
        raise PlanError(
            f"For this call the model computes with parameter {unseen[0]!r}, which the example inputs did not reach, "
            "so no gradients would be averaged for it. Pass example inputs to sdp.compile() that use all that is "
            "trained."
        )
    members = structure.members.get(plan.block_family, {}) if plan.block_family is not None else {}
    if {name: unit for name, unit in members.items() if name in plan.members} != plan.members:
        raise _does_not_fit("other residual blocks than the plan's")
    return result


def _does_not_fit(what: str) -> PlanError:
    return PlanError(
        f"For this call the model needs {what}. Compile it as it will be trained: convert the model first, pass "
        "example inputs with the dtypes of training, or call sdp.compile() under torch.autocast."
    )
