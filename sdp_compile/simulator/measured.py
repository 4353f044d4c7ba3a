"""Fits a cluster to measurements: the link, FLOP rate and update rate of this machine's workers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from sdp_compile.runtime.comm.traffic import CollectiveKind, sent_bytes
from sdp_compile.simulator.cluster import Cluster, Link
from sdp_compile.simulator.collectives import ring_seconds

COPIED = 2**24
"""Bytes that are copied to measure how fast that is: more than the caches hold, as a round of gradients."""


def measured_cluster(
    probes: Sequence[Sequence[dict[str, Any]]], flops: float, nbytes: float, cores: int | None = None
) -> Cluster:
    """Returns the cluster of one node on which the probes were taken.

    Args:
        probes: What the workers measured, by round and rank: the seconds of ``compute``, ``update`` and ``copy`` (of
            `COPIED` bytes), and ``collectives``, a list of ``kind``, ``payload`` and ``seconds``.
        flops: Forward FLOPs of the model that the workers trained.
        nbytes: Bytes of its parameters.
        cores: CPU cores that the workers share; default: those of this machine.
    """
    workers = len(probes[0])
    cores = cores or os.cpu_count() or 1
    # Computing was measured while the workers shared the cores; alone, a worker is faster by this factor.
    slowdown = max(1.0, workers / cores)
    compute, update, copy = (
        median(max(answer[what] for answer in of_all) for of_all in probes) for what in ("compute", "update", "copy")
    )
    times = collective_seconds(probes)
    link = fitted_link({size: seconds for (kind, size), seconds in times.items() if kind == "all_reduce"}, workers)
    factors: dict[CollectiveKind, float] = {}
    for kind in dict.fromkeys(kind for kind, _ in times):
        size = max(size for other, size in times if other == kind)
        factors[kind] = times[kind, size] / ring_seconds(kind, size, workers, link)
    achieved, updated, copied = (rate * slowdown for rate in (3 * flops / compute, nbytes / update, COPIED / copy))
    return Cluster(1, workers, link, link, achieved, updated, copied, cores, factors)


def collective_seconds(probes: Sequence[Sequence[dict[str, Any]]]) -> dict[tuple[CollectiveKind, int], float]:
    """Returns the slowest worker's seconds by kind and payload, as the median over rounds."""
    samples: dict[tuple[CollectiveKind, int], list[float]] = {}
    for of_all in probes:
        for same in zip(*(answer["collectives"] for answer in of_all), strict=True):
            key = (same[0]["kind"], same[0]["payload"])
            samples.setdefault(key, []).append(max(one["seconds"] for one in same))
    return {key: median(seconds) for key, seconds in samples.items()}


def fitted_link(seconds: dict[int, float], workers: int) -> Link:
    """Fits a link to the seconds of a ring all-reduce by payload, by least squares of the relative errors."""
    sizes = list(seconds)
    took = np.array([seconds[size] for size in sizes])
    rows = np.array([[2 * (workers - 1), sent_bytes("all_reduce", size, workers)] for size in sizes]) / took[:, None]
    (latency, per_byte), *_ = np.linalg.lstsq(rows, np.ones(len(sizes)), rcond=None)
    if latency < 0:  # too small to measure
        latency, per_byte = 0.0, 1 / float(np.mean(rows[:, 1]))
    return Link(float(latency), max(0.0, float(per_byte)))
