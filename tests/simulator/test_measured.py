"""A cluster fitted to the measurements of a made-up machine is that machine."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdp_compile.simulator.cluster import Link
from sdp_compile.simulator.collectives import ring_seconds
from sdp_compile.simulator.measured import COPIED, fitted_link, measured_cluster

SIZES = (2**14, 2**20, 2**24)


@given(st.floats(1e-6, 1e-3), st.floats(1e7, 1e12), st.integers(2, 64))
def test_latency_and_bandwidth_are_recovered(latency: float, bandwidth: float, workers: int) -> None:
    link = Link.of(latency, bandwidth)
    fitted = fitted_link({size: ring_seconds("all_reduce", size, workers, link) for size in SIZES}, workers)
    for size in SIZES:
        expected = ring_seconds("all_reduce", size, workers, link)
        assert ring_seconds("all_reduce", size, workers, fitted) == pytest.approx(expected, rel=1e-6)


def test_a_latency_too_small_to_see_is_none() -> None:
    assert fitted_link({2**10: 1e-9, 2**20: 1.0}, 2).latency == 0.0


def probe(compute: float, update: float, copy: float, link: Link, workers: int) -> dict[str, Any]:
    """Measurements of a worker that, like Gloo, runs a reduce-scatter as an all-reduce."""
    times = [
        {"kind": kind, "payload": size, "seconds": ring_seconds(inside, size, workers, link)}
        for size in SIZES
        for kind, inside in (("all_reduce", "all_reduce"), ("reduce_scatter", "all_reduce"))
    ]
    return {"compute": compute, "update": update, "copy": copy, "collectives": times}


def test_rates_are_those_of_a_worker_with_a_core_of_its_own() -> None:
    link = Link.of(1e-4, 1e9)
    slow, usual = ([probe(seconds, 0.5, 0.25, link, 4) for _ in range(4)] for seconds in (9.0, 3.0))
    cluster = measured_cluster([usual, slow, usual], flops=1e9, nbytes=2e6, cores=2)
    # Four workers on two cores compute three times the forward FLOPs in 3 s.
    assert cluster.flops == pytest.approx(2e9)
    assert cluster.update == pytest.approx(8e6)
    assert (cluster.computing(1e9), cluster.updating(2e6)) == pytest.approx((1.0, 0.5))
    assert cluster.copying(COPIED) == pytest.approx(0.25)
    assert (cluster.workers, cluster.overlaps) == (4, False)
    assert cluster.factors["all_reduce"] == pytest.approx(1.0)
    assert cluster.factors["reduce_scatter"] == pytest.approx(2.0)
