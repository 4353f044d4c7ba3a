"""How gradients travel between workers and nodes, what a lost node costs, and how to place units better."""

from __future__ import annotations

from collections.abc import Iterator

from sdp_compile.inspector.render.style import counted
from sdp_compile.ownership.levels import Level, Levels
from sdp_compile.planning.finding import Finding
from sdp_compile.planning.plan import Plan
from sdp_compile.policies.nodes import stride_of
from sdp_compile.policies.placement import MOST_DEFAULT_SLOTS, divisors, workers_of


def levels_text(levels: Levels) -> str:
    """Returns ``gradients travel in 3 levels: 8 workers of a node, 64 nodes of a class, 8 classes``."""
    if not levels:
        return ""
    if levels.why:
        return f"gradients travel in one exchange among all {levels.workers} workers, because {levels.why}"
    steps = ", ".join(_level_text(level, levels) for level in levels)
    return f"gradients travel in {counted(len(levels), 'level')}: {steps}"


def _level_text(level: Level, levels: Levels) -> str:
    several_nodes = levels.node_size < levels.workers
    inside = " in a node" if several_nodes and level.in_node else ""
    if level.kind == "exchange":
        return f"{level.size} {'workers' if level.size == levels.workers else 'classes'}{inside}"
    of_a_class = " of a class" if len(levels.classes) > 1 else ""
    if several_nodes and not level.in_node:
        return f"{level.size} nodes{of_a_class}"
    if several_nodes and level.size == levels.node_size:
        return f"{level.size} workers of a node"
    return f"{level.size} workers{of_a_class}{inside}"


def redundancy_text(plan: Plan) -> str:
    """Returns how many workers and nodes can be lost without losing a unit."""
    found = plan.redundancy()
    if not found.spare_workers:
        return "some units have a single owner, and are lost with it"
    workers = f"any {counted(found.spare_workers, 'worker')}"
    if plan.nodes > 1:
        nodes = f"any {found.spare_nodes:,} of the {plan.nodes:,} nodes" if found.spare_nodes else ""
        workers += f", or {nodes}," if nodes else ", but not any node,"
    return f"{workers} can be lost without losing a unit"


def travel_findings(plan: Plan) -> Iterator[Finding]:
    """Yields what is wrong with how the units lie on the nodes, and with how gradients travel."""
    several_nodes = 1 < plan.nodes < plan.workers
    found = plan.redundancy()
    if several_nodes and found.nodes == 1 and found.workers > 1:
        yield Finding(
            "warning",
            "All owners of some units are on one node: if that node is lost, so is their training. "
            f"{_remedy(plan) or 'Raise the coverage, so that each unit has owners on two nodes.'}",
        )
    if plan.levels.why and plan.workers > 4:
        yield Finding(
            "note",
            f"Gradients are averaged in one exchange among all {plan.workers} workers, because {plan.levels.why}. Few "
            "classes of equal size, as the designs of the policies make them, need less time among many workers.",
        )
    elif several_nodes and not any(level.in_node for level in plan.levels):
        yield Finding(
            "note",
            "No step of a reduction stays inside a node, so whole gradients travel between nodes. "
            f"{_remedy(plan) or 'Choose slots that divide the size of a node, or the number of nodes.'}",
        )


def _remedy(plan: Plan) -> str:
    """Returns a number of slots with which each unit has owners on two nodes and a step stays inside a node."""
    if plan.policy.get("policy") not in ("neuron", "block", "auto") or plan.policy.get("design") in ("nested", "core"):
        return ""
    replicas = {family.replicas for family in plan.families}
    fitting = [
        slots
        for slots in divisors(plan.workers)
        if 1 < slots <= MOST_DEFAULT_SLOTS and all(_fits(plan, slots, owners) for owners in replicas)
    ]
    if not fitting or max(fitting) == len(plan.levels.classes):  # as many as there are already
        return ""
    return f"Try slots={max(fitting)}."


def _fits(plan: Plan, slots: int, owners: int) -> bool:
    share, rest = divmod(owners * slots, plan.workers)
    stride = stride_of(plan.workers, slots, plan.node_size)
    if rest or not share or (stride == 1 and plan.node_size % slots):
        return False
    nodes = {worker // plan.node_size for worker in workers_of(frozenset(range(share)), slots, plan.workers, stride)}
    return len(nodes) > 1
