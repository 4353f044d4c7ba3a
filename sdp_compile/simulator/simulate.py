"""``simulate(plan, cluster)`` predicts a training step of SDP, DDP or FSDP2 from a plan."""

from __future__ import annotations

from typing import Literal

from sdp_compile.errors import SDPError
from sdp_compile.planning.buckets import DEFAULT_BUCKET_BYTES
from sdp_compile.planning.plan import Plan
from sdp_compile.simulator import fsdp2
from sdp_compile.simulator.cluster import Cluster
from sdp_compile.simulator.collectives import Algorithm
from sdp_compile.simulator.exchanges import Exchanges
from sdp_compile.simulator.step import Prediction
from sdp_compile.simulator.timeline import Exchange, Work, step_ends
from sdp_compile.simulator.work import training_flops, work_of

Strategy = Literal["sdp", "sdp-sharded", "ddp", "ddp-checkpoint", "fsdp2"]


def simulate(
    plan: Plan,
    cluster: Cluster,
    strategy: Strategy = "sdp",
    *,
    bucket_bytes: int = DEFAULT_BUCKET_BYTES,
    algorithm: Algorithm = "best",
) -> Prediction:
    """Predicts one training step of a plan's model at the captured input size.

    Computation and communication are two streams. A bucket is sent once its gradients are ready (estimated by parameter
    bytes), in the global order of buckets. Backward costs twice the forward FLOPs. The input pipeline, operators bound
    by memory bandwidth and stragglers are not modelled. Workers that own the same units are computed once, so thousands
    of workers take seconds.

    Args:
        plan: The plan of the model.
        cluster: The cluster, with as many workers as the plan.
        strategy: ``"sdp"`` trains with the plan, ``"sdp-sharded"`` shards its optimizer state among owners. ``"ddp"``,
            ``"ddp-checkpoint"`` (which repeats forward in backward) and ``"fsdp2"`` train the full model.
        bucket_bytes: Size of a gradient bucket.
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
    exchanges = Exchanges(plan, cluster, algorithm)
    if strategy in ("sdp", "sdp-sharded"):
        return _sdp(exchanges, bucket_bytes, strategy == "sdp-sharded")
    dense = sum(term.flops for term in plan.work)
    updated = plan.memory().gradients / (plan.workers if strategy == "fsdp2" else 1)
    again = 1 if strategy == "ddp-checkpoint" else 0
    one = Work(cluster.computing(dense), cluster.computing((2 + again) * dense), cluster.updating(updated))
    return _fsdp2(exchanges, one) if strategy == "fsdp2" else _ddp(strategy, exchanges, one, bucket_bytes)


def _sdp(exchanges: Exchanges, bucket_bytes: int, sharded: bool) -> Prediction:
    plan, flops = exchanges.plan, training_flops(exchanges.plan)
    works = [work_of(plan, workers[0], flops, exchanges.cluster, sharded) for workers in exchanges.classes]
    during = exchanges.gradients(bucket_bytes, "reduce_scatter" if sharded else "all_reduce")
    after = exchanges.gradients(bucket_bytes, "all_gather") if sharded else []
    after += exchanges.refresh()
    ends = step_ends(works, during, after, overlaps=exchanges.cluster.overlaps)
    slowest = max(range(len(ends)), key=lambda one: ends[one])
    return _prediction("sdp-sharded" if sharded else "sdp", exchanges, works[slowest], ends[slowest], [*during, *after])


def _ddp(name: str, exchanges: Exchanges, one: Work, bucket_bytes: int) -> Prediction:
    during = exchanges.dense_gradients(bucket_bytes)
    ends = step_ends([one] * len(exchanges.classes), during, overlaps=exchanges.cluster.overlaps)
    return _prediction(name, exchanges, one, max(ends), during)


def _fsdp2(exchanges: Exchanges, one: Work) -> Prediction:
    step = fsdp2.step(exchanges, one.forward, one.backward)
    return _prediction("fsdp2", exchanges, one, step.end + one.update, list(step.collectives))


def _prediction(name: str, exchanges: Exchanges, one: Work, end: float, collectives: list[Exchange]) -> Prediction:
    """Reports the traffic of the class that sends most. Classes that share anything wait for the slowest."""
    classes = range(len(exchanges.classes))
    sent = [sum(exchange.sent for exchange in collectives if number in exchange.classes) for number in classes]
    most = max(classes, key=lambda number: sent[number])
    own = [exchange for exchange in collectives if most in exchange.classes]
    return Prediction(
        name,
        exchanges.plan.workers,
        end,
        one.forward,
        one.backward,
        sum(exchange.seconds for exchange in own),
        max(0.0, end - one.total),
        one.update,
        sent[most],
        len(own),
    )
