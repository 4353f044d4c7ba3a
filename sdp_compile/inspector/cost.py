"""The view ``cost``: memory, FLOPs and traffic of each worker, next to a dense data-parallel worker."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from sdp_compile.inspector.plain import View
from sdp_compile.ownership.owners import OwnerSet, OwnerSets
from sdp_compile.planning.cost import ring_all_reduce_bytes

if TYPE_CHECKING:
    from sdp_compile.inspector.subject import Subject
    from sdp_compile.planning.plan import Plan

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Cost:
    """What one worker pays.

    Attributes:
        parameters, gradients, optimizer_state, buffers: Bytes held when training with AdamW.
        total: Their sum without buffers.
        flops: Forward FLOPs at the example's input size.
        sent_partitioned, sent_shared: Gradient bytes sent per step for cut and for shared parameters, with rings.
        sent_refresh: Bytes of updated parameter values sent per step under backward masking.
        sent: All bytes sent per step.
        groups: Number of owner groups that the worker is in.
    """

    parameters: int
    gradients: int
    optimizer_state: int
    buffers: int
    total: int
    flops: float
    sent_partitioned: float
    sent_shared: float
    sent_refresh: float
    sent: float
    groups: int


@dataclass(frozen=True)
class ClassCost:
    """Workers that own the same units, and what each of them pays."""

    workers: tuple[int, ...]
    cost: Cost


@dataclass(frozen=True)
class GroupTraffic:
    """The gradient bytes (``payload``) that one owner group averages per step, and the bytes each member sends."""

    owners: OwnerSet
    payload: int
    sent: float
    buckets: int


@dataclass(frozen=True)
class CostView(View):
    """Costs by class of workers, and traffic by owner group, the group that sends most first."""

    model: str
    workers: int
    optimizer: str
    dense: Cost
    classes: tuple[ClassCost, ...]
    groups: tuple[GroupTraffic, ...]


def cost_view(subject: Subject) -> CostView:
    """Returns the costs of a plan, computed once per class of workers."""
    plan = subject.plan
    return CostView(
        model=subject.model,
        workers=plan.workers,
        optimizer="AdamW",
        dense=dense_cost(plan),
        classes=worker_costs(plan),
        groups=_groups(plan),
    )


def worker_costs(plan: Plan) -> tuple[ClassCost, ...]:
    """Returns what the workers of each class pay."""
    return tuple(ClassCost(tuple(workers), _cost(plan, workers[0])) for workers in plan.worker_classes())


def dense_cost(plan: Plan) -> Cost:
    """Returns what a data-parallel worker with the full model would pay."""
    return _cost(plan, None)


def merged(classes: Iterable[ClassCost], key: Callable[[Cost], Key]) -> list[tuple[tuple[int, ...], Key]]:
    """Merges the classes whose costs have the same key; workers that pay the same can own different units.

    Returns:
        The workers, ascending, and the key of each merged class.
    """
    result: dict[Key, list[int]] = {}
    for one in classes:
        result.setdefault(key(one.cost), []).extend(one.workers)
    return [(tuple(sorted(workers)), value) for value, workers in result.items()]


def _cost(plan: Plan, rank: int | None) -> Cost:
    memory, communication = plan.memory(rank), plan.communication(rank or 0)
    partitioned, shared, refresh = communication.partitioned, communication.shared, communication.refresh
    if rank is None:
        partitioned, shared, refresh = 0.0, communication.dense, 0.0
    return Cost(
        parameters=memory.parameters,
        gradients=memory.gradients,
        optimizer_state=memory.optimizer_state,
        buffers=memory.buffers,
        total=memory.total,
        flops=float(plan.flops(rank)),
        sent_partitioned=partitioned,
        sent_shared=shared,
        sent_refresh=refresh,
        sent=partitioned + shared + refresh,
        groups=communication.groups if rank is not None else int(plan.workers > 1),
    )


def _groups(plan: Plan) -> tuple[GroupTraffic, ...]:
    known, payload, count = OwnerSets(), list[int](), list[int]()
    for bucket in plan.buckets():
        number = known.number(bucket.owners)
        if number == len(payload):
            payload.append(0)
            count.append(0)
        payload[number] += bucket.nbytes
        count[number] += 1
    traffic = (
        GroupTraffic(owners, nbytes, ring_all_reduce_bytes(nbytes, len(owners)), buckets)
        for owners, nbytes, buckets in zip(known.sets, payload, count, strict=True)
    )
    return tuple(sorted(traffic, key=lambda group: (-group.sent, group.owners)))
