"""How many workers a node has: what the policy says, else what torchrun says, else all."""

from __future__ import annotations

import os
from dataclasses import dataclass

from sdp_compile.policies.base import Policy
from sdp_compile.policies.nodes import checked_node_size


@dataclass(frozen=True)
class Launch:
    """What the launcher says about nodes.

    Attributes:
        node_size: The number of workers of each node, or None if it says nothing that can be used.
        note: Why it cannot be used, for the report.
    """

    node_size: int | None = None
    note: str = ""


def launched(rank: int, workers: int) -> Launch:
    """Returns what torchrun's environment variables say about the nodes of the world.

    Nodes of unequal size, and workers that are not numbered node by node, count as one node.

    Args:
        rank: This worker's rank in the world.
        workers: The size of the world.
    """
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    if not text.isdecimal() or int(text) < 1:
        return Launch()
    size = int(text)
    # Not all launchers set all of these, and a process can have those of another job around it.
    said = {name: os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "GROUP_WORLD_SIZE")}
    found = {name: int(value) for name, value in said.items() if value.isdecimal()}
    if found.get("WORLD_SIZE", workers) != workers or found.get("RANK", rank) != rank:
        return Launch()
    equal = workers % size == 0 and found.get("GROUP_WORLD_SIZE", workers // size) * size == workers
    if equal and found.get("LOCAL_RANK", rank % size) == rank % size:
        return Launch(size)
    why = "are not numbered node by node" if equal else "do not fill nodes of this size"
    return Launch(
        note=f"LOCAL_WORLD_SIZE={size}, but the {workers} workers {why}, so the plan counts them as one node. Give the "
        "policy a node_size if this is wrong."
    )


def with_nodes(policy: Policy, workers: int, launch: Launch | None) -> tuple[Policy, int, tuple[str, ...]]:
    """Settles the size of a node.

    Args:
        policy: The policy; its ``node_size`` comes first.
        workers: The number of workers.
        launch: What the launcher says.

    Returns:
        The policy with that size, the size as plans hold it (0 for one node), and notes for the report.

    Raises:
        PolicyError: The policy's ``node_size`` does not divide the workers.
    """
    launch = launch or Launch()
    given = policy.node_size is not None
    size = checked_node_size(policy.node_size if given else launch.node_size, workers)
    notes = (launch.note,) if launch.note and not given else ()
    if size == workers:
        return policy, 0, notes
    return policy if given else policy.model_copy(update={"node_size": size}), size, notes
