"""`sdp.compile` takes the size of buckets with which the simulated step on the given machines is shortest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import sdp_compile as sdp
from sdp_compile import SDPError
from sdp_compile.planning.plan import Plan
from sdp_compile.simulator import Cluster, Link, simulate
from tests.distributed import WorkerFailed, run_workers

POLICY = sdp.NeuronPolicy(coverage=0.5)


def model_of(width: int = 1024) -> nn.Module:
    """48 MiB of parameters, without memory."""
    with torch.device("meta"):
        return nn.Sequential(*(nn.Linear(width, width) for _ in range(12)))


def images() -> tuple[torch.Tensor]:
    return (torch.zeros(2, 1024, device="meta"),)


def cluster(latency: float, workers: int = 4) -> Cluster:
    link = Link.of(latency, 1e9)
    return Cluster(1, workers, link, link, flops=1e12)


def buckets(module: sdp.SDPModule) -> set[int]:
    return {node.kwargs["bucket"] for node in module.graph.nodes if "bucket" in node.kwargs}


@pytest.mark.parametrize(("latency", "is_one_round"), [(0.0, False), (1.0, True)])
def test_the_size_is_that_of_the_shortest_simulated_step(latency: float, is_one_round: bool) -> None:
    plan: Plan = sdp.plan(model_of(), POLICY, images(), workers=4)
    best = simulate(plan, cluster(latency)).bucket_bytes
    assert (plan.rounds(best) == 1) is is_one_round
    chosen, given = (
        sdp.compile(model_of(), POLICY, images(), workers=4, rank=1, bucket_bytes=size)
        for size in (cluster(latency), best)
    )
    assert buckets(chosen) == buckets(given) == {bucket.number for bucket in plan.buckets(1, best)}


def test_a_cluster_with_other_workers_is_an_error() -> None:
    with pytest.raises(SDPError, match="plan is for 2 workers, the cluster has 4"):
        sdp.compile(model_of(), POLICY, images(), workers=2, rank=0, bucket_bytes=cluster(0.0))


def different(rank: int) -> Any:
    sdp.compile(model_of(), sdp.NeuronPolicy(coverage=1.0), images(), bucket_bytes=cluster(float(rank), 2))


@pytest.mark.timeout(120)
def test_ranks_that_choose_other_sizes_are_an_error_on_all() -> None:
    with pytest.raises(WorkerFailed) as raised:
        run_workers(different, 2)
    assert set(raised.value.failures) == {0, 1}
    assert all("bucket_bytes" in text for text in raised.value.failures.values())
