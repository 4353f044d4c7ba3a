"""``simulate(plan, cluster)`` predicts a training step of SDP, DDP or FSDP2 from a plan."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Literal

import numpy as np

from sdp_compile.errors import SDPError
from sdp_compile.planning.plan import Plan
from sdp_compile.simulator import peers
from sdp_compile.simulator.cluster import Cluster
from sdp_compile.simulator.collectives import Algorithm, Cost
from sdp_compile.simulator.readiness import Readiness
from sdp_compile.simulator.reduction import Phase, Reduction
from sdp_compile.simulator.rounds import pipelined
from sdp_compile.simulator.step import Prediction
from sdp_compile.simulator.timeline import run
from sdp_compile.simulator.work import Work, state_of, training_flops, work_of

Strategy = Literal["sdp", "sdp-sharded", "ddp", "ddp-checkpoint", "fsdp2"]

SMALLEST_BUCKET = 8 * 2**20
"""Smaller buckets than this are not tried: each costs the host about half a millisecond."""

MOST_ROUNDS = 1024
"""More rounds than this are not tried: each costs a latency, and the simulator some time."""

ASSUMPTIONS = (
    "Collectives cost latency per message that waits for another, and bytes on the busiest link; the workers of a node "
    "share its link, and levels that are under way at the same time share links.",
    "DDP and FSDP2 use the faster of a ring and of hierarchical collectives (in nodes and between them, pipelined "
    "without loss). Nothing is reduced inside switches.",
    "Computing takes FLOPs over TFLOP/s, whatever the width; a launch of a kernel, an operator bound by memory and a "
    "straggler cost nothing. Communication does not slow computing down.",
    "SDP has buckets of the size with which its step is shortest (--bucket-bytes sets another).",
    "SDP copies what it exchanges twice, to pack and to unpack it, and adds up in the time of a copy. FSDP2 copies "
    "what it has gathered, and gradients once.",
    "A gradient is ready after the share of backward that its parameter has of all bytes.",
)
"""What a prediction stands on."""


def simulate(
    plan: Plan,
    cluster: Cluster,
    strategy: Strategy = "sdp",
    *,
    bucket_bytes: int | None = None,
    algorithm: Algorithm = "best",
) -> Prediction:
    """Predicts one training step of a plan's model at the captured input size.

    Rounds of gradients go through the plan's levels once they are ready (estimated by parameter bytes), while backward
    continues. Backward costs twice the forward FLOPs. See `ASSUMPTIONS`. Workers that own the same units are computed
    once, so thousands of workers take seconds.

    Args:
        plan: The plan of the model.
        cluster: The cluster, with as many workers as the plan.
        strategy: ``"sdp"`` trains with the plan, ``"sdp-sharded"`` shards its optimizer state among owners. ``"ddp"``,
            ``"ddp-checkpoint"`` (which repeats forward in backward) and ``"fsdp2"`` train the full model.
        bucket_bytes: Size of a gradient bucket, of what a worker holds of a round; None for that with which the step
            is shortest, and for DDP's own size.
        algorithm: Collective algorithm; ``"best"`` takes the faster one.

    Returns:
        The predicted step.

    Raises:
        SDPError: If the cluster and the plan have different numbers of workers.
    """
    if plan.workers != cluster.workers:
        raise SDPError(
            f"The plan is for {plan.workers} workers, the cluster has {cluster.workers} ({cluster.nodes} nodes with "
            f"{cluster.workers_per_node} workers each). Plan for {cluster.workers} workers or change the cluster."
        )
    if strategy in ("sdp", "sdp-sharded"):
        return _sdp(plan, cluster, algorithm, bucket_bytes, strategy == "sdp-sharded")
    return _peer(plan, cluster, strategy, algorithm, bucket_bytes)


def _sdp(plan: Plan, cluster: Cluster, algorithm: Algorithm, bucket_bytes: int | None, sharded: bool) -> Prediction:
    """Takes the size of a bucket with which the step is shortest, if none is given."""
    readiness, flops = Readiness(plan), training_flops(plan)
    workers = [members[0] for members in plan.worker_classes()]
    works = [work_of(plan, worker, flops, cluster, sharded) for worker in workers]
    state = max(state_of(plan, worker, sharded) for worker in workers)
    owned = max(plan.memory(worker).gradients for worker in workers)
    steps = (
        _step(Reduction(plan, cluster, algorithm, size, readiness.shares), works, state, sharded)
        for size in ([bucket_bytes] if bucket_bytes else sizes_of_buckets(owned))
    )
    return min(steps, key=lambda step: step.seconds)


def _step(reduction: Reduction, works: Sequence[Work], state: float, sharded: bool) -> Prediction:
    during = reduction.there() if sharded else reduction.both()
    shares = reduction.ready if reduction.cluster.overlaps else [1.0] * len(during)
    ready = [max(one.forward + one.backward * share for one in works) for share in shares]
    averaged = max(run(pipelined(during, ready)), default=0.0)
    updated = max(max(averaged, one.forward + one.backward) + one.update for one in works)
    back, refresh = reduction.back() if sharded else [], reduction.refresh()
    returned = max(run(pipelined(back, [updated] * len(back))), default=updated)
    phases = [*(phase for of_round in (*during, *back) for phase in of_round), *refresh]
    return _prediction(
        "sdp-sharded" if sharded else "sdp",
        reduction.plan,
        max(works, key=lambda one: one.total),
        returned + sum(phase.cost.seconds for phase in refresh),
        [(phase.level, phase.cost) for phase in phases if phase.sent.any()],
        _most_sent(phases),
        reduction.bucket_bytes,
        state,
    )


def sizes_of_buckets(owned: float) -> list[int]:
    """Returns the sizes of a bucket among which the best one is taken: powers of two, to all gradients at once.

    Each round costs each level a latency, and the classes of workers have different parts of small rounds, so that most
    of them wait. But nothing travels before the first round is complete, and nothing hides the last one.
    """
    sizes = [SMALLEST_BUCKET]
    while sizes[0] * MOST_ROUNDS < owned:
        sizes[0] *= 2
    while sizes[-1] < owned:
        sizes.append(2 * sizes[-1])
    return sizes


def _peer(
    plan: Plan, cluster: Cluster, strategy: Strategy, algorithm: Algorithm, bucket_bytes: int | None
) -> Prediction:
    dense, memory = sum(term.flops for term in plan.work), plan.memory()
    parts = plan.workers if strategy == "fsdp2" else 1
    again = 1 if strategy == "ddp-checkpoint" else 0
    one = Work(
        cluster.computing(dense), cluster.computing((2 + again) * dense), cluster.updating(memory.gradients / parts)
    )
    peer, readiness = peers.Peer(cluster, algorithm), Readiness(plan)
    if strategy == "fsdp2":
        peers.fsdp2(peer, readiness, one.forward, one.backward)
    else:
        peers.ddp(peer, readiness, one.forward, one.backward, bucket_bytes)
    size = 0 if strategy == "fsdp2" else bucket_bytes or peers.DDP_BUCKET
    costs = [(0, cost) for cost in peer.costs]
    return _prediction(strategy, plan, one, peer.end + one.update, costs, peer.sent, size, memory.total / parts)


def _prediction(
    name: str,
    plan: Plan,
    work: Work,
    end: float,
    costs: list[tuple[int, Cost]],
    sent: float,
    bucket_bytes: int,
    state: float,
) -> Prediction:
    """Costs come with the numbers of their streams."""
    return Prediction(
        name=name,
        workers=plan.workers,
        seconds=end,
        forward=work.forward,
        backward=work.backward,
        communication=sum(cost.seconds for _, cost in costs),
        exposed=max(0.0, end - work.total),
        update=work.update,
        sent=sent,
        collectives=len(costs),
        transfer=_largest_sum((cost.crosses, cost.transfer) for _, cost in costs),
        latency=_largest_sum((stream, cost.latency) for stream, cost in costs),
        bucket_bytes=bucket_bytes,
        state=state,
    )


def _most_sent(phases: list[Phase]) -> float:
    return float(np.sum([phase.sent for phase in phases], axis=0).max()) if phases else 0.0


def _largest_sum(parts: Iterable[tuple[Hashable, float]]) -> float:
    sums: dict[Hashable, float] = {}
    for key, value in parts:
        sums[key] = sums.get(key, 0.0) + value
    return max(sums.values(), default=0.0)
