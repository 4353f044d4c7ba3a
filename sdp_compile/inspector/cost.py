"""The view ``cost``: what each worker pays in memory, FLOPs and traffic, against a dense data-parallel worker."""

from __future__ import annotations

from dataclasses import dataclass

from sdp_compile.inspector.plain import View
from sdp_compile.inspector.subject import Subject
from sdp_compile.ownership.owners import OwnerSet, OwnerSets
from sdp_compile.planning.cost import ring_all_reduce_bytes


@dataclass(frozen=True)
class Cost:
    """Bytes held with AdamW (``total`` without buffers), forward FLOPs, and bytes sent per step in rings.

    ``sent_refresh`` are the updated values of cut parameters under backward masking.
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
    """What each of these workers pays, which is the same for all of them."""

    workers: tuple[int, ...]
    cost: Cost


@dataclass(frozen=True)
class GroupTraffic:
    """The owners of some units: the gradient bytes that they reduce per step, and what each of them sends for that."""

    owners: OwnerSet
    payload: int
    sent: float
    buckets: int


@dataclass(frozen=True)
class CostView(View):
    """Costs by class of workers; ``groups`` are ordered by what they send."""

    model: str
    workers: int
    optimizer: str
    dense: Cost
    classes: tuple[ClassCost, ...]
    groups: tuple[GroupTraffic, ...]


def cost_view(subject: Subject) -> CostView:
    """The figures of the plan, computed once for each class of workers."""
    plan = subject.plan
    return CostView(
        model=subject.model,
        workers=plan.workers,
        optimizer="AdamW",
        dense=_cost(subject, None),
        classes=tuple(ClassCost(tuple(members), _cost(subject, members[0])) for members in plan.worker_classes()),
        groups=_groups(subject),
    )


def _cost(subject: Subject, rank: int | None) -> Cost:
    plan = subject.plan
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


def _groups(subject: Subject) -> tuple[GroupTraffic, ...]:
    known, payload, count = OwnerSets(), list[int](), list[int]()
    for bucket in subject.plan.buckets():
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
