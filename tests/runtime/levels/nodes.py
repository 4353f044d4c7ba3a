"""Owners of the stub's units among workers on several nodes, as the cyclic design places them."""

from __future__ import annotations

from dataclasses import replace

from sdp_compile.planning.plan import Plan
from tests.runtime.stub import HIDDEN, Net, Subnet, capture_of, network, plan_of


def cyclic(workers: int, slots: int, share: int, node_size: int) -> list[tuple[int, ...]]:
    """The owners of each unit: a worker's class is its node's number modulo ``slots``, or its own on few nodes."""
    nodes = workers // node_size
    by_node = nodes >= slots and nodes % slots == 0

    def owns(worker: int, slot: int) -> bool:
        cell = (worker // node_size if by_node else worker) % slots
        return cell in {(slot + step) % slots for step in range(share)}

    sets = [tuple(worker for worker in range(workers) if owns(worker, slot)) for slot in range(slots)]
    return [sets[unit * slots // HIDDEN] for unit in range(HIDDEN)]


def plan_on_nodes(net: Net, owners: list[tuple[int, ...]], workers: int, node_size: int) -> Plan:
    return replace(plan_of(capture_of(net), owners, workers), node_size=node_size)


def subnet_on_nodes(rank: int, owners: list[tuple[int, ...]], workers: int, node_size: int) -> Subnet:
    net = network()
    return Subnet(net, plan_on_nodes(net, owners, workers, node_size), rank, capture_of(net))
