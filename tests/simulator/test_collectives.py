"""Times of collectives, compared with values worked out by hand, and properties that hold for all of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdp_compile.errors import SDPError
from sdp_compile.runtime.comm.traffic import CollectiveKind
from sdp_compile.simulator.cluster import Cluster, Link
from sdp_compile.simulator.collectives import Algorithm, among_all, cost, seconds

LINK = Link(latency=1e-3, seconds_per_byte=1e-6)
KINDS: list[CollectiveKind] = ["all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all"]


@pytest.mark.parametrize(
    ("kind", "algorithm", "milliseconds"),
    [
        # Four workers, 1000 bytes: 1 ms per sequential message and 1 ms per 1000 bytes that a worker sends.
        ("all_reduce", "ring", 6 + 1.5),
        ("all_reduce", "tree", 4 + 2.0),
        ("all_gather", "ring", 3 + 0.75),
        ("all_gather", "tree", 2 + 0.75),
        ("reduce_scatter", "ring", 3 + 0.75),
        ("reduce_scatter", "tree", 2 + 0.75),
        ("broadcast", "tree", 2 + 1.0),
        ("all_to_all", "ring", 3 + 0.75),
        ("all_to_all", "tree", 1 + 0.75),
    ],
)
def test_costs_by_hand(kind: CollectiveKind, algorithm: Algorithm, milliseconds: float) -> None:
    assert seconds(kind, 1000, 4, LINK, algorithm) == pytest.approx(milliseconds * 1e-3)


@given(st.sampled_from(KINDS), st.floats(0, 1e9), st.integers(1, 5000), st.floats(0, 1), st.floats(0, 1))
def test_what_holds_for_all(kind: CollectiveKind, payload: float, members: int, latency: float, byte: float) -> None:
    link = Link(latency, byte)
    ring, tree = (seconds(kind, payload, members, link, algorithm) for algorithm in ("ring", "tree"))
    assert seconds(kind, payload, members, link) == min(ring, tree)
    assert ring >= 0
    if members == 1 or payload == 0:
        assert ring == tree == 0
    assert seconds(kind, 2 * payload, members, link, "ring") >= ring
    assert seconds(kind, payload, members, Link(2 * latency, byte), "ring") >= ring


@given(st.floats(1, 1e9), st.integers(2, 5000))
def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather(payload: float, members: int) -> None:
    both = sum(seconds(kind, payload, members, LINK, "ring") for kind in ("reduce_scatter", "all_gather"))
    assert seconds("all_reduce", payload, members, LINK, "ring") == pytest.approx(both)


def test_a_ring_is_as_slow_as_its_slowest_link_and_shares_a_nodes_connection() -> None:
    intra, inter = Link(1.0, 2.0), Link(3.0, 4.0)
    cluster = Cluster(nodes=4, workers_per_node=8, intra=intra, inter=inter, flops=1.0)
    assert cluster.path(range(8)) == intra
    assert cluster.path(range(32)) == inter  # a single ring goes through all workers of each node
    assert cluster.path([0, 8]) == Link(3.0, 32.0)  # eight such pairs can share the link
    assert cluster.path([0, 1, 2, 3, 8, 9, 10, 11]) == Link(3.0, 8.0)


def test_collectives_among_all_by_hand() -> None:
    """Two nodes of four workers; a byte takes 1 us inside and 10 us between, a message 1 ms and 5 ms."""
    cluster = Cluster(2, 4, Link(1e-3, 1e-6), Link(5e-3, 1e-5), flops=1.0)
    # Inside: 2 x 2 messages, 2 x 750 bytes, hidden behind 1000 bytes between two nodes, in 2 messages.
    assert among_all("all_reduce", 1000, cluster).seconds == pytest.approx(4e-3 + 10e-3 + 10e-3)
    assert among_all("all_gather", 1000, cluster).seconds == pytest.approx(2e-3 + 5e-3 + 5e-3)
    # A ring through both: 14 messages, of which 4 leave a node, and 1750 bytes.
    slow = Cluster(2, 4, Link(0, 0), Link(5e-3, 1e-5), flops=1.0)
    assert among_all("all_reduce", 1000, slow, "ring").seconds == pytest.approx(2 * 5e-3 + 10e-3)
    assert among_all("all_to_all", 1000, cluster).seconds == pytest.approx(7 * 5e-3 + 8.75e-3)


@given(st.sampled_from(KINDS), st.floats(0, 1e9), st.sampled_from([1, 2, 3, 8]), st.integers(1, 600))
def test_more_bytes_never_take_less_among_all(kind: CollectiveKind, payload: float, inside: int, nodes: int) -> None:
    cluster = Cluster(nodes, inside, Link(1e-5, 1e-11), Link(2e-5, 1e-10), flops=1.0)
    assert among_all(kind, payload, cluster).seconds <= among_all(kind, 2 * payload, cluster).seconds + 1e-12


def test_a_slower_kind_of_collective_takes_its_factor() -> None:
    assert cost("all_gather", 1000, 4, LINK).times(2).seconds == pytest.approx(2 * (2e-3 + 0.75e-3))


def test_workers_that_share_cores_compute_slower_and_hide_nothing() -> None:
    def on(cores: int | None) -> Cluster:
        return Cluster(1, 4, LINK, LINK, flops=100.0, update=10.0, cores=cores)

    assert [on(cores).computing(200.0) for cores in (None, 8, 4, 2)] == [2.0, 2.0, 2.0, 4.0]
    assert on(2).updating(10.0) == 2.0
    assert [on(cores).overlaps for cores in (None, 8, 4, 2)] == [True, True, False, False]


@pytest.mark.parametrize("fields", [{"latency": -1.0, "bandwidth": 1.0}, {"latency": 0.0, "bandwidth": 0.0}])
def test_an_impossible_link_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(SDPError, match="Link"):
        Link.of(**fields)


@pytest.mark.parametrize("fields", [{"nodes": 0}, {"workers_per_node": 0}, {"flops": 0.0}, {"cores": 0}])
def test_an_impossible_cluster_is_refused(fields: dict[str, float]) -> None:
    given_: dict[str, object] = {"nodes": 1, "workers_per_node": 1, "intra": LINK, "inter": LINK, "flops": 1.0}
    with pytest.raises(SDPError, match=f"Cluster: {next(iter(fields))} must be"):
        Cluster(**{**given_, **fields})  # type: ignore[arg-type]
