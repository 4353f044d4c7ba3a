"""The plan that a model gets next, and its programs: from what was captured, without another capture."""

from __future__ import annotations

from typing import Any

from sdp_compile.errors import PlanError
from sdp_compile.lowering import Lowered
from sdp_compile.passes import Pass, bucket_bytes_of, pipeline, with_pass
from sdp_compile.planning.families import layouts_of_state
from sdp_compile.planning.making import make_plan
from sdp_compile.planning.moves import check_same_model
from sdp_compile.planning.nodes import Launch
from sdp_compile.planning.plan import Plan
from sdp_compile.policies import resolve_policy
from sdp_compile.runtime.module.sdp_module import SDPModule


def checked_plan(module: SDPModule, policy: Any) -> Plan:
    """Returns the plan that a policy makes for a compiled model, or a given plan if it is one of this model.

    Args:
        module: The compiled module.
        policy: A policy as `sdp_compile.sdp_compile` takes it, or a `Plan`.

    Raises:
        SDPError: If the policy does not fit the model, or the plan is that of another one.
    """
    current = module.plan
    if not isinstance(policy, Plan):
        node_size = Launch(current.node_size or None)
        plan = make_plan(module.analysis, resolve_policy(policy), current.workers, node_size)
    else:
        plan = policy
        check_same_model(current, plan)
        _check_structure(module, plan)
    if module.peers is not None:
        plan.check_order(module.peers.bucket_bytes)
    return plan


def _check_structure(module: SDPModule, plan: Plan) -> None:
    """Raises `PlanError` if a plan was made from another capture."""
    structure = module.analysis.structure
    units = {family.name: family.units for family in structure.families}
    for family in plan.families:
        if units.get(family.name) != family.units:
            raise PlanError(
                f"The plan is that of another capture: it cuts {family.name!r} into {family.units} units, which this "
                "one does not. Make it by sdp.plan() with the example inputs that sdp.compile() got."
            )
    names = frozenset(family.name for family in plan.families)
    layouts = layouts_of_state(plan.state, structure, names, plan.masking)
    different = next((name for name in layouts if layouts[name] != plan.layouts[name]), None)
    members = structure.members.get(plan.block_family, {}) if plan.block_family is not None else {}
    moved = next((name for name, unit in plan.members.items() if members.get(name) != unit), different)
    if moved is not None or plan.order != module.plan.order:
        raise PlanError(
            f"The plan is that of another capture: {moved or 'the order of parameters'!r} is used in another way. Make "
            "it by sdp.plan() with the example inputs that sdp.compile() got."
        )


def relowered(module: SDPModule, plan: Plan) -> Lowered:
    """Returns the worker's programs by another plan, with the passes of its own.

    Args:
        module: The compiled module.
        plan: The plan.

    Raises:
        SDPError: If the passes do not fit the plan's masking, or fail.
    """
    passes = _passes(module, plan)
    return module.lowerings.lower(plan, passes)


def _passes(module: SDPModule, plan: Plan) -> tuple[Pass, ...]:
    """Returns the module's passes; for another masking the default ones of that, with those that the user added."""
    own, before = module.lowered.passes, module.plan.masking
    if plan.masking == before:
        return own
    size = bucket_bytes_of(own)
    old, result = pipeline(module.lowering, before, size), pipeline(module.lowering, plan.masking, size)
    if [one for one in own if one in old] != list(old):
        raise PlanError(
            f"The model was compiled with a pipeline of its own for masking={before!r}, so it cannot get "
            f"masking={plan.masking!r}. Compile it with passes=None, or with names of passes to add."
        )
    for number, one in reversed(list(enumerate(own))):
        if one not in old:
            result = with_pass(result, one, own[number + 1].name if number + 1 < len(own) else None)
    return result
