"""Predicted steps: traffic equals the plan's own formula, and times have the properties of any machine."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdp_compile import BlockPolicy, NeuronPolicy, Policy
from sdp_compile.bench.formula import predict_fsdp2
from sdp_compile.capture import capture
from sdp_compile.errors import SDPError
from sdp_compile.planning.making import make_plan
from sdp_compile.planning.plan import Plan
from sdp_compile.simulator import Cluster, Link, simulate
from sdp_compile.simulator.collectives import Cost
from sdp_compile.simulator.readiness import Readiness
from sdp_compile.simulator.reduction import Phase, Reduction
from sdp_compile.simulator.rounds import pipelined
from sdp_compile.simulator.simulate import Strategy, sizes_of_buckets
from sdp_compile.simulator.timeline import run
from sdp_compile.structure.analysis import Analysis, analyse
from tests.bench.models import Residual

STRATEGIES: tuple[Strategy, ...] = ("ddp", "ddp-checkpoint", "fsdp2", "sdp", "sdp-sharded")


NETWORK = Link(1e-5, 1e-9)


@cache
def analysed() -> Analysis:
    return analyse(capture(Residual(blocks=8), (torch.randn(4, 16),)))


@cache
def wide() -> Analysis:
    """A model of 100 MB."""
    return analyse(
        capture(Residual(width=512, hidden=2048, blocks=12).to("meta"), (torch.randn(4, 512, device="meta"),))
    )


def plan(workers: int, policy: Policy) -> Plan:
    return make_plan(analysed(), policy, workers)


def cluster(workers: int, link: Link = NETWORK, cores: int | None = None) -> Cluster:
    return Cluster(1, workers, link, link, flops=1e9, update=1e9, cores=cores)


policies = st.sampled_from(
    [
        NeuronPolicy(coverage=0.5),
        NeuronPolicy(coverage=0.25),
        BlockPolicy(coverage=0.5),
        BlockPolicy(replicas=1),
        NeuronPolicy(coverage=0.5, masking="backward"),
    ]
)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([2, 3, 4, 8, 16]), policies, st.sampled_from(["sdp", "sdp-sharded"]))
def test_sdp_sends_what_the_plan_says(workers: int, policy: Policy, strategy: Strategy) -> None:
    chosen = plan(workers, policy)
    most = max(chosen.communication(rank).total for rank in range(workers))
    assert simulate(chosen, cluster(workers), strategy).sent == pytest.approx(most)


def test_the_peers_send_what_their_algorithms_say() -> None:
    chosen, model = plan(4, NeuronPolicy(coverage=0.5)), Residual(blocks=8)
    gradients = sum(parameter.nbytes for parameter in model.parameters())
    assert simulate(chosen, cluster(4), "ddp").sent == pytest.approx(2 * 3 / 4 * gradients)
    assert simulate(chosen, cluster(4), "fsdp2").sent == pytest.approx(predict_fsdp2(model, 4).nbytes)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_without_a_network_only_work_takes_time(strategy: Strategy) -> None:
    chosen = plan(4, NeuronPolicy(coverage=0.5))
    step = simulate(chosen, cluster(4, Link(0, 0)), strategy)
    assert (step.exposed, step.communication) == pytest.approx((0, 0), abs=1e-12)
    assert step.seconds == pytest.approx(step.forward + step.backward + step.update)


def test_work_by_hand() -> None:
    chosen = plan(4, NeuronPolicy(coverage=0.5))
    dense = chosen.flops()
    ddp, again, sdp = (simulate(chosen, cluster(4), name) for name in ("ddp", "ddp-checkpoint", "sdp"))
    assert (ddp.forward, ddp.backward) == pytest.approx((dense / 1e9, 2 * dense / 1e9))
    assert again.backward == pytest.approx(3 * dense / 1e9)
    assert sdp.forward == pytest.approx(chosen.flops(0) / 1e9)
    assert ddp.update == pytest.approx(chosen.memory().parameters / 1e9)
    assert simulate(chosen, cluster(4), "fsdp2").update == pytest.approx(ddp.update / 4)


def test_full_coverage_is_data_parallelism() -> None:
    chosen = plan(4, NeuronPolicy(coverage=1.0))
    ddp, sdp = simulate(chosen, cluster(4), "ddp"), simulate(chosen, cluster(4), "sdp")
    assert (sdp.sent, sdp.forward, sdp.backward) == pytest.approx((ddp.sent, ddp.forward, ddp.backward))


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(STRATEGIES), policies, st.floats(0, 1e-3), st.floats(0, 1e-6))
def test_a_slower_network_or_shared_cores_never_help(
    strategy: Strategy, policy: Policy, latency: float, byte: float
) -> None:
    chosen, link = plan(4, policy), Link(latency, byte)
    quick = simulate(chosen, cluster(4, link), strategy)
    assert quick.seconds >= quick.forward + quick.backward + quick.update - 1e-12
    for slower in (cluster(4, Link(2 * latency, byte)), cluster(4, Link(latency, 2 * byte)), cluster(4, link, cores=2)):
        assert simulate(chosen, slower, strategy).seconds >= quick.seconds - 1e-12


def test_backward_masking_computes_the_full_model_but_for_weight_gradients_and_refreshes() -> None:
    forward, backward = (plan(4, NeuronPolicy(coverage=0.5, masking=masking)) for masking in ("forward", "backward"))
    step = simulate(backward, cluster(4), algorithm="ring")
    assert step.forward == pytest.approx(forward.flops() / 1e9)
    assert step.backward == pytest.approx((forward.flops() + forward.flops(0)) / 1e9)
    cut = sum(tensor.nbytes for name, tensor in forward.state.items() if forward.is_cut(name))
    (refresh,) = Reduction(backward, cluster(4), "ring", 2**30, Readiness(backward).shares).refresh()
    assert refresh.kind == "all_to_all"
    # Each worker receives the half of the values that it does not own, and so sends as much.
    assert step.sent == pytest.approx(simulate(forward, cluster(4)).sent + cut / 2)
    assert Reduction(forward, cluster(4), "ring", 2**30, Readiness(forward).shares).refresh() == []


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("masking", ["forward", "backward"])
def test_copies_take_the_time_that_their_bytes_take(masking: str, strategy: Strategy) -> None:
    """Two owners per unit of a half: gradients are packed and unpacked, values that are fetched as well."""
    chosen = plan(4, NeuronPolicy(coverage=0.5, masking=masking))
    free, copies = cluster(4, cores=1), replace(cluster(4, cores=1), copy=1e6)
    nbytes = {name: tensor.nbytes for name, tensor in chosen.state.items() if tensor.kind == "parameter"}
    total, owned = sum(nbytes.values()), chosen.memory(0).gradients
    fetched = total - owned if masking == "backward" else 0
    # FSDP2 gathers blocks for forward and for backward, the root once, and scatters the gradients of all.
    root = sum(nbytes[name] for name in nbytes if not name.startswith("blocks."))
    # Of four owners each adds up a quarter of four parts, of two a half of two.
    common = sum(nbytes[name] for name in nbytes if not chosen.is_cut(name))
    sdp = 2 * owned + common * 3 / 4 + (owned - common) / 2 + fetched
    copied = {"fsdp2": 3 * total - root, "sdp": sdp, "sdp-sharded": sdp}
    took = simulate(chosen, copies, strategy).seconds - simulate(chosen, free, strategy).seconds
    assert took == pytest.approx(4 * copied.get(strategy, 0) / 1e6, rel=1e-6)


@pytest.mark.parametrize("masking", ["forward", "backward"])
@pytest.mark.parametrize(("workers", "nodes"), [(16, 2), (64, 8), (128, 16)])
def test_levels_send_what_the_plan_says_and_less_leaves_the_nodes(workers: int, nodes: int, masking: str) -> None:
    node_size = workers // nodes
    policy = NeuronPolicy(coverage=0.5, masking=masking, node_size=node_size)
    chosen = plan(workers, policy)
    on = Cluster(nodes, node_size, Link(0, 1e-12), Link(0, 1e-9), flops=1e9, update=1e9)
    assert simulate(chosen, on).sent == pytest.approx(max(chosen.communication(rank).total for rank in range(workers)))
    # With fewer nodes than classes every node has all classes, so the sums of all parameters leave it.
    share = 1.0 if nodes < len(chosen.levels.classes) else 0.75
    assert simulate(chosen, on).transfer <= share * simulate(chosen, on, "ddp").transfer * (1 + 1e-9)


def test_two_levels_by_hand() -> None:
    """Two nodes of two workers are two classes; every unit has one owner class, so only shared gradients leave."""
    chosen = plan(4, NeuronPolicy(coverage=0.5, slots=2, node_size=2))
    assert [(level.kind, level.size, level.in_node) for level in chosen.levels] == [
        ("class", 2, True),
        ("exchange", 2, False),
    ]
    on = Cluster(2, 2, Link(1.0, 1e-3), Link(10.0, 1e-2), flops=1e9)
    (phases,) = Reduction(chosen, on, "ring", 2**30, Readiness(chosen).shares).both()
    assert [phase.kind for phase in phases] == ["reduce_scatter", "all_to_all", "all_to_all", "all_gather"]
    owned = chosen.memory(0).gradients
    trained = filter(chosen.is_trainable, chosen.order)
    shared = sum(piece.numel * 4 for name in trained for piece in chosen.pieces(name) if len(piece.owners) == 4)
    assert phases[0].cost.seconds == pytest.approx(1.0 + owned / 2 * 1e-3)
    # Each of a node's two workers sends half of its half of the shared gradients to the other node.
    assert phases[1].cost.seconds == pytest.approx(10.0 + 2 * shared / 4 * 1e-2)
    assert phases[3].cost.seconds == pytest.approx(phases[0].cost.seconds)


def test_thousands_of_workers_are_a_few_classes() -> None:
    chosen = plan(4096, NeuronPolicy(coverage=0.5))
    link = Link.of(1e-5, 1e11)
    step = simulate(chosen, Cluster(512, 8, link, link, flops=1e12), "sdp")
    assert step.workers == 4096
    assert step.sent == pytest.approx(chosen.communication(0).total)


def test_rounds_are_pipelined_through_the_levels() -> None:
    """Of two rounds with two phases of 1 s each, on levels of their own, the second ends 1 s after the first."""
    phase = [Phase(level, "all_gather", Cost(1.0, 0.0), np.zeros(1)) for level in (0, 1)]
    assert run(pipelined([phase, phase], [0.0, 0.0])) == [1.0, 2.0, 2.0, 3.0]
    # The second phase of the first round is issued after the first phase of the second, which is ready at 5.
    assert max(run(pipelined([phase, phase], [0.0, 5.0]))) == 7.0


def test_the_size_of_a_bucket_is_the_best_and_grows_with_latency() -> None:
    chosen = make_plan(wide(), NeuronPolicy(coverage=0.5), 4)
    owned = chosen.memory(0).gradients
    sizes = sizes_of_buckets(owned)
    assert sizes[0] == 8 * 2**20 < owned <= sizes[-1] < 2 * owned
    assert sizes_of_buckets(1.0) == [8 * 2**20]
    assert sizes_of_buckets(2.0**36)[0] == 64 * 2**20  # of which 64 GiB have 1,024
    found = []
    for latency in (0.0, 1e-3, 1.0):
        on = Cluster(1, 4, Link(latency, 1e-9), Link(latency, 1e-9), flops=1e12)
        step = simulate(chosen, on)
        assert step.seconds == min(simulate(chosen, on, bucket_bytes=size).seconds for size in sizes)
        assert simulate(chosen, on, bucket_bytes=step.bucket_bytes) == step
        found.append(step.bucket_bytes)
    assert found == sorted(found) and found[0] < found[-1] == sizes[-1]


def test_the_cluster_must_have_the_plans_workers() -> None:
    with pytest.raises(SDPError, match="4 workers, the cluster has 8"):
        simulate(plan(4, NeuronPolicy(coverage=0.5)), cluster(8))


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_owners_split_gradients_and_moments(workers: int) -> None:
    """At full coverage each of N owners keeps all parameters, and of gradients and two moments an Nth."""
    whole = plan(workers, NeuronPolicy(coverage=1.0))
    sharded = simulate(whole, cluster(workers), "sdp-sharded")
    assert sharded.state / whole.memory().total == pytest.approx((1 + 3 / workers) / 4, rel=0.01)
    alone = plan(workers, BlockPolicy(replicas=1))
    owned = simulate(alone, cluster(workers), "sdp").state
    assert simulate(alone, cluster(workers), "sdp-sharded").state < owned < whole.memory().total
